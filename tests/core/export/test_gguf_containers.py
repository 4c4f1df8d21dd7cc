"""Bytes of llama.cpp's tensor types: what its own package makes of them is the grid, to the bit."""

import dataclasses
import itertools

import gguf
import pytest
import torch

from normtweak_core.export.gguf.containers import CONTAINERS, container_of, held_by
from normtweak_core.export.gguf.packing import NotHeld, pack
from normtweak_core.quantization.weight import QuantizedWeight

GRIDS = list(itertools.product((2, 3, 4, 8), (True, False), (32, 64, 256, None)))
HELD = [(*grid, kind) for grid in GRIDS for kind in held_by(grid[0], grid[2], grid[1])]


def random_grid(bits, symmetric, group_size, columns=512, rows=5):
    """Codes, scales and zero points of which each occurs, the outermost too."""
    draws = torch.Generator().manual_seed(bits)
    shape = rows, columns // (group_size or columns)
    codes = torch.randint(0, 2**bits, (rows, columns), generator=draws, dtype=torch.uint8)
    scales = (torch.rand(shape, generator=draws) + 1e-3).half().float()
    zeros = torch.randint(0, 2**bits, shape, generator=draws, dtype=torch.uint8)
    zeros = torch.full_like(zeros, 2 ** (bits - 1)) if symmetric else zeros
    return QuantizedWeight(codes, scales, zeros, bits, group_size, symmetric)


@pytest.mark.parametrize(("bits", "symmetric", "group_size", "kind"), HELD)
def test_every_type_holds_its_grids_to_the_bit(bits, symmetric, group_size, kind):
    layer, container = random_grid(bits, symmetric, group_size), CONTAINERS[kind]
    stored = pack(layer, container)
    assert stored.shape == (5, container.row_bytes(512))
    number = gguf.GGMLQuantizationType[kind]
    assert (container.block, container.size) == gguf.GGML_QUANT_SIZES[number]
    found = torch.from_numpy(gguf.dequantize(stored, number))
    assert torch.equal(found, layer.dequantize())


def test_the_smallest_type_that_holds_a_grid_comes_first():
    assert held_by(4, 32, True) == ("Q4_0",)
    assert held_by(4, 64, False) == ("Q5_0",)
    assert held_by(4, None, False) == ("Q4_K", "Q5_0")
    assert held_by(8, 32, True) == ("Q8_0",)
    assert held_by(2, 256, False) == held_by(2, None, True) == ("Q2_K", "Q4_0")
    assert held_by(3, 512, True) == ("Q3_K", "Q4_0")
    assert held_by(3, None, False) == held_by(2, 64, True) == ("Q4_0",)
    assert held_by(8, 32, False) == held_by(4, 16, True) == ()
    for grid in GRIDS:
        bits = [CONTAINERS[kind].bits_per_weight for kind in held_by(grid[0], grid[2], grid[1])]
        assert bits == sorted(bits)


def test_a_row_that_is_no_whole_number_of_blocks_takes_the_next_type():
    kinds = held_by(2, None, True)
    wanted = {512: "Q2_K", 288: "Q4_0", 172: "F32"}
    assert {width: container_of(kinds, width).name for width in wanted} == wanted


def test_negative_scales_of_other_tools_are_held():
    layer = random_grid(4, True, 32)
    turned = dataclasses.replace(layer, scales=-layer.scales)
    found = gguf.dequantize(pack(turned, CONTAINERS["Q4_0"]), gguf.GGMLQuantizationType.Q4_0)
    assert torch.equal(torch.from_numpy(found), turned.dequantize())


def test_what_a_type_does_not_hold_is_said():
    layer = random_grid(4, True, 32)
    finer = dataclasses.replace(layer, scales=layer.scales + 1e-6)
    with pytest.raises(NotHeld, match=r"must be numbers of half precision, and one is 0\."):
        pack(finer, CONTAINERS["Q4_0"])
    with pytest.raises(NotHeld, match=r"levels must be from -8 to 7, and there are -15 and 15"):
        pack(random_grid(4, False, 32), CONTAINERS["Q4_0"])
