"""Fine-tuning of a model that is already quantized: its grids and codes go on learning."""
