"""Mixtures of experts: their names in checkpoints, and their matrices in stacked weights."""
