"""Settings of a method for a model that nobody has settings for: a plain search in stages."""
