"""The polynomial study: a small network on which quantization-aware training can be looked at."""
