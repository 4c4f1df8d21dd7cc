"""What is told of the blocks of a quantization: rows, and what became of each step in words."""
