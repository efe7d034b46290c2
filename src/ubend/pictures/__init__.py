"""Files -> pixels: every kind of picture, its header, its channels, its size."""
