"""Training the norms: block by block while quantizing, and end to end afterwards."""
