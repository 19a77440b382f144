"""Our numbers against numbers that other implementations gave; see README.md."""
