"""What work on a model will cost, found out on one of its blocks."""
