"""Second moments of keys over general text: sources of text, sums, files."""
