"""Sequential rounds: order, checkpoints, resume, stop rules and bounds of a long run."""
