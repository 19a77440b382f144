"""Sequential rounds: order, measurements, resume, stop rules and bounds of a long run."""
