"""Norm tweak and final tune on checkpoints of other tools: how these are made, and what it brings.

`exports` lets a tool quantize and save; `small_exports` makes those of `tests/data/exports`.
"""
