"""Checkpoints that other tools have quantized: what they hold, read exactly."""
