"""Methods side by side: the same streams, the same untouched weights, the same scores."""
