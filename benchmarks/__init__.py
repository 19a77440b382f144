"""Measurements that the documentation quotes, and what makes the embedded models.

Each file's docstring has its command, for the root of a checkout: ``python benchmarks/NAME.py``, or
``python -m benchmarks.NAME`` where it imports from this folder or from ``tests``.
"""
