"""The version, where setup.cfg reads it without importing anything."""

__version__ = "0.1.0"
