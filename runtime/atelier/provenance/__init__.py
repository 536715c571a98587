"""Machine-readable marks in pictures: what they say, how they are written, signed and read."""
