"""A search in stages for a method's settings on a model without a YAML."""
