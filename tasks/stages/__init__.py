"""Cached steps, one file each: declaration, facts, body."""
