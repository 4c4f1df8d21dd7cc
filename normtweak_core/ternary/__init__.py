"""Training with quantized forward passes: ternary weights, an RMSNorm before each linear."""
