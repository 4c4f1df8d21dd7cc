"""Algorithms that turn a float causal language model into a low-bit one.

Importing this package costs nothing: every module imports torch only where it computes, and
nothing here knows a workflow engine or a registry. docs/architecture.md has the map of the folders.
"""
