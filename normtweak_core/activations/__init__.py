"""Activations in 8 bits: how readers round what a linear reads, and what is moved before it."""
