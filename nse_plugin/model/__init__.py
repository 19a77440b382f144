"""What is inside a decoder and how to read and write it; knows nothing of editing."""
