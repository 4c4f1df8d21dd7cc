"""What the manifest of an export says to a fine-tuning, and what is refused."""

import json

import pytest

from normtweak_core.errors import InputError, VerificationError
from normtweak_core.finetune.source import read_export_source
from normtweak_core.model.config import ModelConfig
from normtweak_core.quantization.config import QuantizationConfig
from tasks.results import FloatType

MANIFEST = {
    "export": {
        "format": "compressed-tensors", "dtype": "float16",
        "bits": 2, "group_size": None, "symmetric": True,
    },
    "tensors": {}, "probe": {}, "payload_sha256": "ab" * 32,
    "lineage": {"source_model": "owner/name", "source_revision": "c" * 40, "source_sha256": "d"},
    "recipe": {"quantization": {"bits": 2, "levels": "ternary", "method": "gptq"}},
}  # fmt: skip


def written(folder, **changes):
    (folder / "normtweak.json").write_text(json.dumps(MANIFEST | changes))
    return folder


def test_grid_and_float_model_are_read(tmp_path):
    source = read_export_source(written(tmp_path))
    assert source.quantization == QuantizationConfig(
        bits=2, group_size=None, symmetric=True, levels="ternary"
    )
    model = ModelConfig(source=str(tmp_path), dtype="bfloat16", device="cpu")
    recorded = source.float_model(model, None)
    assert (recorded.source, recorded.revision) == ("owner/name", "c" * 40)
    assert (recorded.dtype, recorded.device) == ("bfloat16", "cpu")
    moved = source.float_model(model, "/elsewhere")
    assert (moved.source, moved.revision) == ("/elsewhere", None)


def test_an_export_written_before_there_were_levels_uses_all_of_them(tmp_path):
    recipe = {"quantization": {"bits": 2}}
    assert read_export_source(written(tmp_path, recipe=recipe)).levels == "full"
    assert read_export_source(written(tmp_path, recipe={})).levels == "full"


def test_a_folder_without_revision_has_none(tmp_path):
    lineage = MANIFEST["lineage"] | {"source_revision": ""}
    assert read_export_source(written(tmp_path, lineage=lineage)).float_revision is None


@pytest.mark.parametrize(
    "refused",
    [
        {},
        {"float16": "activations of block 0 reach 2.24e+05, beyond 65504"},
        {"float16": "model.norm.weight reaches 7e4, beyond 65504", "bfloat16": "logits move: far"},
    ],
)
def test_why_other_float_types_were_passed_over_goes_along(tmp_path, refused):
    recorded = FloatType(dtype="float32", refused=refused).tags()
    lineage = MANIFEST["lineage"] | recorded
    assert read_export_source(written(tmp_path, lineage=lineage)).refused == refused


def test_what_is_no_export_with_a_grid_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"must be the folder of an export.*nowhere is none"):
        read_export_source(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"holds normtweak\.json"):
        read_export_source(tmp_path)
    with pytest.raises(InputError, match="a ternary model in the bitnet format: train on with"):
        read_export_source(written(tmp_path, export={"format": "bitnet"}))
    with pytest.raises(InputError, match="has no lineage: export it with normtweak quantize"):
        read_export_source(written(tmp_path, lineage={}))
    (tmp_path / "normtweak.json").write_text("{")
    with pytest.raises(VerificationError, match="must be JSON"):
        read_export_source(tmp_path)


def test_what_another_tool_has_made_is_to_be_taken_over_first(tmp_path):
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    with pytest.raises(InputError) as raised:
        read_export_source(tmp_path)
    assert raised.value.sentence == (
        f"model.source must be an export of normtweak; {tmp_path} was quantized by another tool: "
        "take its codes over with normtweak quantize and base, and train that export."
    )


def test_sorted_columns_are_not_trained_on(tmp_path):
    export = MANIFEST["export"] | {"act_order": True}
    with pytest.raises(
        InputError, match=r"groups hold columns that follow each other; .* \(g_idx\)"
    ):
        read_export_source(written(tmp_path, export=export))
