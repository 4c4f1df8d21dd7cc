"""Stages in order, and what every flow does around them."""
