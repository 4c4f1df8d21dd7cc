"""What is known to be wrong before the start."""
