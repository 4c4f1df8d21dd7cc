"""Finding, loading and running a decoder block by block."""
