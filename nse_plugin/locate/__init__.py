"""The quantities that locate-then-edit methods share: values, keys, the solve."""
