"""Bits of checkpoints, counted by hand."""

import pytest
import torch
from safetensors.torch import save_file

from normtweak_core.errors import InputError
from normtweak_core.evaluate.size import quantized_storage


def test_compressed_tensors_bits_are_counted_with_scales_zeros_and_shape(tmp_path):
    linear = "model.layers.0.mlp.up_proj"
    save_file(
        {
            f"{linear}.weight_packed": torch.zeros(32, 4, dtype=torch.int32),
            f"{linear}.weight_scale": torch.ones(32, 1, dtype=torch.float16),
            f"{linear}.weight_zero_point": torch.zeros(2, 1, dtype=torch.int32),
            f"{linear}.weight_shape": torch.tensor([32, 64]),
            f"{linear}.bias": torch.zeros(32),
            "lm_head.weight": torch.zeros(7, 64),
        },
        tmp_path / "model.safetensors",
    )
    storage = quantized_storage(tmp_path)
    assert (storage.num_linears, storage.num_weights) == (1, 32 * 64)
    # 2-bit codes, a half-precision scale a row, 2-bit zeros, two int64 of shape
    assert storage.stored_bits == 2 * 32 * 64 + 16 * 32 + 2 * 32 + 128
    assert storage.bits_per_weight == pytest.approx(2.34375)


def test_gptq_bits_are_counted_across_shards(tmp_path):
    linear = "model.layers.0.mlp.up_proj"
    save_file(
        {
            f"{linear}.qweight": torch.zeros(64 * 3 // 32, 32, dtype=torch.int32),
            f"{linear}.qzeros": torch.zeros(2, 32 * 3 // 32, dtype=torch.int32),
        },
        tmp_path / "model-00001-of-00002.safetensors",
    )
    save_file(
        {
            f"{linear}.scales": torch.ones(2, 32, dtype=torch.float16),
            f"{linear}.g_idx": torch.zeros(64, dtype=torch.int32),
        },
        tmp_path / "model-00002-of-00002.safetensors",
    )
    storage = quantized_storage(tmp_path)
    assert storage.num_weights == 64 * 32
    assert storage.stored_bits == 3 * 64 * 32 + 2 * 32 * 3 + 2 * 32 * 16 + 64 * 32


def test_int_quantized_bits_are_counted(tmp_path):
    save_file(
        {
            "a.weight": torch.zeros(8, 16, dtype=torch.int8),
            "a.weight_scale": torch.ones(8, 1, dtype=torch.bfloat16),
        },
        tmp_path / "model.safetensors",
    )
    assert quantized_storage(tmp_path).bits_per_weight == 9


def test_bitnet_bits_are_counted_with_scale_and_gain_but_not_bias(tmp_path):
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "bitnet"}}')
    save_file(
        {
            "a.weight": torch.zeros(8, 64, dtype=torch.uint8),
            "a.weight_scale": torch.ones(1, dtype=torch.float16),
            "a.rms_norm.weight": torch.ones(64, dtype=torch.float16),
            "a.bias": torch.ones(32, dtype=torch.float16),
            "lm_head.weight": torch.zeros(7, 64),
        },
        tmp_path / "model.safetensors",
    )
    storage = quantized_storage(tmp_path)
    assert (storage.num_linears, storage.num_weights) == (1, 32 * 64)
    assert storage.stored_bits == 2 * 32 * 64 + 16 + 16 * 64


def test_a_float_checkpoint_has_no_bits_per_quantized_weight(tmp_path):
    save_file({"a.weight": torch.zeros(8, 16)}, tmp_path / "model.safetensors")
    assert quantized_storage(tmp_path).bits_per_weight is None


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"must hold \*\.safetensors files, found none"):
        quantized_storage(tmp_path)
