"""Where records and models come from: benchmark readers, the embedded world, model folders."""
