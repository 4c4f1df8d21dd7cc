"""Grids, Hessians, GPTQ and error propagation: from float weights to codes."""
