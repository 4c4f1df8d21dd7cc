"""Calibration sets: written by the model, cut from text or data sets, or random."""
