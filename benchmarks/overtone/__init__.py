"""OVERTONE around other editors, measured: ``python -m benchmarks.overtone``."""
