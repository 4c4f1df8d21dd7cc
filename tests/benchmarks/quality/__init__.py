"""Which defaults give the best quantized model, chosen without any evaluation text."""
