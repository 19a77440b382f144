"""The quantities that locate-then-edit methods share: values, keys, covariance, the solve."""
