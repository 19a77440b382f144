"""What is measured of a model, and how; all scores count the replies of :mod:`.questions`."""
