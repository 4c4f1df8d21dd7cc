"""Tiny random models of many families, each taken the whole way in each format."""
