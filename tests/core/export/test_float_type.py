"""The export dtype and scales rounded to it."""

import pytest
import torch
from safetensors.torch import save_file

from normtweak_core.errors import InputError, NonFiniteError
from normtweak_core.export.config import ExportConfig
from normtweak_core.export.float_type import export_dtype, resolve_export_dtype


@pytest.mark.parametrize(
    ("asked", "largest", "expected"),
    [
        ("auto", 65504.0, torch.float16),
        ("auto", 65505.0, torch.bfloat16),
        ("float16", 1.0, torch.float16),
        ("bfloat16", 1.0, torch.bfloat16),
        ("float32", 1e30, torch.float32),
    ],
)
def test_auto_takes_float16_wherever_the_values_fit(asked, largest, expected):
    assert export_dtype(ExportConfig(dtype=asked), largest) == expected


def test_float16_is_refused_where_the_values_do_not_fit():
    with pytest.raises(InputError, match="float16 holds values up to 65504; the model has 70000"):
        export_dtype(ExportConfig(dtype="float16"), 70000.0)


def test_gptq_is_refused_where_float16_does_not_do():
    with pytest.raises(InputError, match=r"gptq needs export.dtype float16.*bfloat16"):
        export_dtype(ExportConfig(format="gptq"), 70000.0)


@pytest.mark.parametrize(
    ("value", "expected"), [(-6e4, torch.float16), (-7e4, torch.bfloat16), (7e4, torch.bfloat16)]
)
def test_the_source_decides_through_its_largest_magnitude(tmp_path, value, expected):
    save_file({"a": torch.ones(3), "b": torch.tensor([0.5, value])}, tmp_path / "model.safetensors")
    assert resolve_export_dtype(ExportConfig(), tmp_path) == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(tmp_path, value):
    save_file({"a": torch.tensor([1.0, value])}, tmp_path / "model.safetensors")
    with pytest.raises(NonFiniteError, match="weights must be finite; a is not"):
        resolve_export_dtype(ExportConfig(), tmp_path)
