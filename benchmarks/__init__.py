"""Measurements that the documentation quotes, and what makes the embedded models."""
