"""The drift of channels: from file to numbers, and as a figure."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from flows.reports.figures.drift_channels import channel_figure
from normtweak_core.errors import InputError
from normtweak_core.evaluate.channel_drift import ChannelDrift
from normtweak_core.quantization.drift import drift
from normtweak_core.quantization.storage import save_drift


def array(*rows):
    return np.array(rows, dtype=np.float64)


BY_HAND = ChannelDrift(
    mean_float=array([1.0, 0.0], [3.0, 4.0]),
    variance_float=array([4.0, 0.0], [0.0, 0.0]),
    mean=array([2.0, 1.0], [3.0, 4.0]),
    variance=array([1.0, 2.0], [0.0, 0.0]),
    square_error=array([1.0, 4.0], [0.0, 1.0]),
)


def test_shift_and_spread_are_in_units_of_the_float_channel():
    assert BY_HAND.mean_shift()[0, 0] == 0.5
    assert BY_HAND.spread()[0, 0] == 0.5
    for values in (BY_HAND.mean_shift(), BY_HAND.spread()):
        assert np.isnan(values).tolist() == [[False, True], [True, True]]


def test_relative_norm_and_channel_loss_by_hand():
    assert BY_HAND.relative_norm().tolist() == [1.0, 0.2]
    assert BY_HAND.channel_loss().tolist() == [(1 + 3 + 1 + 2) / 2, 0.0]


@pytest.fixture
def written(tmp_path, seeded):
    """Files of two blocks, and their drifts."""
    streams = [torch.randn(3, 5, 8, generator=seeded(seed)) for seed in range(4)]
    blocks = [drift(streams[0], streams[1]), drift(streams[2], streams[3])]
    for index, block in enumerate(blocks):
        save_drift(tmp_path / f"{index}.safetensors", {"quantized": [block], "tweaked": [block]})
    return [tmp_path / "0.safetensors", tmp_path / "1.safetensors"], blocks


def test_blocks_are_read_as_they_were_written_from_one_file_or_several(written, tmp_path):
    files, blocks = written
    save_drift(tmp_path / "whole.safetensors", {"tuned": blocks})
    several = ChannelDrift.read(files, "tweaked")
    one = ChannelDrift.read([tmp_path / "whole.safetensors"], "tuned")
    for field in ("mean_float", "variance_float", "mean", "variance", "square_error"):
        expected = np.stack([block.tensors()[field].numpy() for block in blocks])
        assert (getattr(several, field) == expected).all()
        assert (getattr(one, field) == expected).all()
    assert several.relative_norm() == pytest.approx([block.relative_norm for block in blocks])


def test_the_channel_loss_is_that_of_norm_tweaking_but_for_the_divisor(written, seeded):
    from normtweak_core.tweak.loss import channel_loss

    target, output = (torch.randn(4000, 8, generator=seeded(s)).double() for s in (1, 2))
    found = drift(output[None] * 1.5, target[None])
    as_arrays = {name: tensor.numpy()[None] for name, tensor in found.tensors().items()}
    expected = channel_loss(target, output * 1.5).item()
    assert ChannelDrift(**as_arrays).channel_loss()[0] == pytest.approx(expected, rel=1e-3)


def test_equal_drift_is_an_equal_figure_and_other_drift_another(written):
    read = ChannelDrift.read(written[0], "quantized")
    stages = {"a": read, "b": replace(read, mean=read.mean + 0.1)}
    first = channel_figure(stages, "drift")
    assert first.startswith(b"\x89PNG")
    assert first == channel_figure(stages, "drift")
    assert first != channel_figure(stages | {"b": replace(read, mean=read.mean - 0.3)}, "drift")
    assert first != channel_figure(stages | {"b": replace(read, variance=read.variance * 2)}, "d")


def test_channels_without_a_unit_are_left_out_of_the_figure():
    assert channel_figure({"by hand": BY_HAND}, "drift").startswith(b"\x89PNG")
    assert math.isnan(BY_HAND.spread()[1, 0])


def test_stages_of_different_models_are_refused(written):
    read = ChannelDrift.read(written[0], "quantized")
    with pytest.raises(InputError, match=r"\{'a': \(2, 8\), 'b': \(2, 2\)\}.*of one model"):
        channel_figure({"a": read, "b": BY_HAND}, "drift")
    with pytest.raises(InputError, match=r"found none"):
        channel_figure({}, "drift")
