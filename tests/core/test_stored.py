"""Tensors are read from their files as the library reads them, and large ones hold no memory."""

import json

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from normtweak_core.export.shards import METADATA, ShardWriter
from normtweak_core.model.checkpoint import read_header
from normtweak_core.model.loading import load_causal_lm, mapped_causal_lm
from normtweak_core.model.streaming import StreamedModel
from normtweak_core.stored import TORCH_TYPES, is_finite, read_tensor
from tests.tiny_exports import save_tiny_model, tiny_config

MIB = 1 << 20
KINDS = [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float8_e4m3fn, torch.float16]
KINDS += [torch.bfloat16, torch.float32, torch.float64]


def of_all_kinds():
    values = {str(kind): torch.arange(-6, 6).view(3, 4).to(kind) for kind in KINDS}
    return values | {"none": torch.empty(0, 3), "one": torch.tensor(2.5)}


def assert_same(found, wanted):
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    raw = [one.contiguous().flatten().view(torch.uint8) for one in (found, wanted)]
    assert torch.equal(*raw)


def test_tensors_of_every_kind_are_those_that_were_saved(tmp_path):
    path, values = tmp_path / "a.safetensors", of_all_kinds()
    save_file(values, path)
    for name, place in read_header(path).items():
        assert TORCH_TYPES[place.dtype] is values[name].dtype
        assert_same(read_tensor(place), values[name])


@pytest.mark.parametrize("spaces", [1, 2, 4])
def test_a_header_of_any_length_will_do(spaces, tmp_path):
    path = tmp_path / "a.safetensors"
    values = torch.arange(6, dtype=torch.float64)
    entry = {"x": {"dtype": "F64", "shape": [6], "data_offsets": [0, 48]}}
    header = json.dumps(entry).encode()
    header += b" " * (-len(header) % 8 + spaces)
    path.write_bytes(len(header).to_bytes(8, "little") + header + values.numpy().tobytes())
    assert torch.equal(read_tensor(read_header(path)["x"]), values)


def test_a_shard_has_the_bytes_that_the_library_writes(tmp_path):
    values = of_all_kinds() | {"narrow": torch.arange(8).view(2, 4)[:, :1]}
    shards = ShardWriter(tmp_path, 1 << 20)
    for name, tensor in values.items():
        shards.add(name, tensor)
    shards.finish()
    save_file({name: one.contiguous() for name, one in values.items()}, tmp_path / "w", METADATA)
    written = tmp_path / "model.safetensors"
    assert written.read_bytes() == (tmp_path / "w").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "w"}
    assert load_file(written).keys() == values.keys()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_not_finite_is_found_anywhere(value):
    values = torch.zeros(2, (1 << 20) + 3)
    assert is_finite(values)
    values[1, -1] = value
    assert not is_finite(values)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    config = tiny_config("llama", vocab_size=70_000, hidden_size=256)
    folder = save_tiny_model(tmp_path_factory.mktemp("wide") / "model", config)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return folder


def held():
    info = psutil.Process().memory_info()
    return info.rss - info.shared


def test_an_open_model_holds_no_large_embedding_and_no_large_head(wide):
    ids = torch.tensor([[5, 69_000, 7]])
    expected = load_causal_lm(wide, torch.float32, "cpu")(ids).logits
    StreamedModel(wide, torch.float32, "cpu").logits(ids)  # what is imported for it
    before = held()
    model = StreamedModel(wide, torch.float32, "cpu")
    assert 70_000 * 256 * 4 > 64 * MIB
    assert held() - before < 16 * MIB
    assert torch.equal(model.logits(ids), expected)
    assert held() - before < 16 * MIB


def test_a_model_whose_weights_stay_in_their_file_computes_the_same(wide):
    ids = torch.tensor([[5, 69_000, 7]])
    for dtype in (torch.float32, torch.bfloat16):
        whole = load_causal_lm(wide, dtype, "cpu")(ids, use_cache=False).logits
        before = held()
        mapped = mapped_causal_lm(wide, dtype, "cpu")
        assert torch.equal(mapped(ids, use_cache=False).logits, whole)
        assert held() - before < 16 * MIB
