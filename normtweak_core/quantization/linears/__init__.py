"""The linears of one block: how both streams pass through it, and how each is solved on the way."""
