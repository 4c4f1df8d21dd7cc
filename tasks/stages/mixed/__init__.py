"""The stages of mixed widths."""
