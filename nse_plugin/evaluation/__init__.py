"""What is measured of a model, and how: every answer is checked in :mod:`.answers`."""
