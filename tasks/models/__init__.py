"""A model as a run sees it."""
