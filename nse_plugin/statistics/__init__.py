"""Second moments of keys over general text: where the text comes from, sums, files."""
