"""Ablations: what is varied, what came of it, and what that says."""
