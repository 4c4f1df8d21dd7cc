"""A budget of bits through the library's front door."""

import json

import pytest
import torch

from normtweak_core import InputError, quantize
from tests.tiny_exports import save_tiny_model, tiny_config

IDS = (torch.arange(8 * 16).reshape(8, 16) * 7919 + 13) % 256
QUICK = {"group_size": 32, "effort": "fast", "calibration": IDS, "progress": False}


def test_a_budget_is_kept_and_what_it_bought_is_told_and_verified(tmp_path):
    folder = save_tiny_model(tmp_path / "model", tiny_config("llama"))
    bits = {"average": 3.6, "choose_from": [2, 3, 4]}
    result = quantize(folder, bits=bits, **QUICK)
    allotment = result.report.allotment
    assert result.report.bits_per_weight == pytest.approx(allotment.average, abs=1e-12)
    assert 3.3 < allotment.average <= 3.6
    assert len(allotment.counts) > 1
    assert allotment.in_words() in str(result.report)
    for block in result.report.blocks:
        widths = allotment.of_block(block.block)
        assert {layer.layer: layer.bits for layer in block.layers} == widths
        for fused in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
            assert len({width for name, width in widths.items() if name.endswith(fused)}) == 1
    assert result.verify().num_quantized == 14
    saved = result.save(tmp_path / "saved")
    recorded = json.loads((saved / "normtweak.json").read_text())
    assert recorded["recipe"]["quantization"]["bits"] == bits


def test_a_budget_that_nothing_keeps_is_refused_before_any_work(tmp_path):
    folder = save_tiny_model(tmp_path / "model", tiny_config("llama"))
    with pytest.raises(InputError, match=r"^bits\.average must be from 2\.\d{4} to 8\.\d{4}, "):
        quantize(folder, bits={"average": 2}, **QUICK)
