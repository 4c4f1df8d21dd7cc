"""Formats that stock readers open, and the proof that they do."""
