"""The library's front door: one call from a float model to a low-bit one.

What it does step by step stands in the other folders, whose functions can be called alone.
"""
