"""How each format stores a linear, and what it cannot hold."""
