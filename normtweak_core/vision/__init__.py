"""Models that read images beside text: their text tower is quantized, the rest stays float."""
