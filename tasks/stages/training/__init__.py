"""The cached steps of a training."""
