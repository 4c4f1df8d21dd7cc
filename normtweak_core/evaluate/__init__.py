"""Measuring a quantized model beside its float model."""
