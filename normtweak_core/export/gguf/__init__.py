"""The GGUF file beside a ternary export, for llama.cpp."""
