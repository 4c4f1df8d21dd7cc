"""Inputs whose rounding no faithful reader can get differently."""

import pytest
import torch

from normtweak_core.export.verification.layer_probe import output_step, probe_input
from normtweak_core.ternary.weight import ternary_linear


def layer_of(generator, columns, gain):
    return ternary_linear(torch.randn(8, columns, generator=generator), gain, None, torch.float32)


def scaled(x, gain):
    """What is rounded to 8 bits, in float64."""
    values = x.double() if gain is None else gain.double() * x.double()
    return 127 * values / values.abs().amax(dim=1, keepdim=True)


@pytest.mark.parametrize("columns", [1, 33, 256])
@pytest.mark.parametrize(("dtype", "distance"), [(torch.float32, 1e-4), (torch.float16, 0.06)])
def test_what_is_rounded_lies_close_to_whole_numbers(columns, dtype, distance, seeded):
    gain = torch.randn(columns, generator=seeded()).exp() * 1e-3
    for g in (None, gain):
        x = probe_input(layer_of(seeded(1), columns, g))
        values = scaled(x.to(dtype), g)
        assert (values - values.round()).abs().max() < distance
        assert x.square().mean(dim=1).tolist() == pytest.approx([1.0, 1.0], rel=1e-5)
        if columns > 100:
            assert len(set(values.round().flatten().tolist())) == 82  # -40 .. 40, and 127


def test_columns_with_a_vanishing_gain_are_fed_zero(seeded):
    gain = torch.ones(16)
    gain[3], gain[4], gain[5] = 0.0, 1e-7, -0.5
    x = probe_input(layer_of(seeded(), 16, gain))
    assert x[:, 3:5].tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert (x[:, 5] != 0).any()
    assert torch.equal(probe_input(layer_of(seeded(), 16, torch.zeros(16))), torch.zeros(2, 16))


def test_at_most_64_outputs_are_kept():
    for rows in (1, 63, 64, 65, 128, 4096, 11008):
        assert 1 <= len(range(0, rows, output_step(rows))) <= 64
