"""Where records and models come from: benchmark readers, embedded facts, model folders."""
