"""Seeded generators: one per use, never the global one."""

import hashlib

import torch


def derived_seed(seed: int, purpose: str, block: int = 0) -> int:
    """Return a 63-bit seed that differs for every (seed, purpose, block)."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{block}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, purpose: str, block: int = 0) -> torch.Generator:
    """Return a CPU generator of its own for one use of randomness."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose, block))
