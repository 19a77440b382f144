"""The embedded world and its models, made from seeds: ``python -m benchmarks.atlas.build``."""
