"""Keeps files, locks and runs whole."""
