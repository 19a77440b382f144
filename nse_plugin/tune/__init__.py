"""Settings of a method for a model without a YAML: a plain search in stages."""
