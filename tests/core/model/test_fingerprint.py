import hashlib
import json
import struct
import subprocess
import sys

import pytest
import torch
from families import save
from safetensors.torch import load_file, save_file

from normtweak_core.errors import InputError
from normtweak_core.model.fingerprint import fingerprint


def spoil(path, change):
    path.write_bytes(change(path.read_bytes()))


def test_a_tensors_hash_covers_dtype_shape_and_bytes(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    tensors = {
        "a.w": torch.arange(6.0).reshape(2, 3),
        "a.b": torch.tensor([1, 2], dtype=torch.int8),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    found = fingerprint(tmp_path)
    floats = b"F32 [2, 3]\n" + struct.pack("<6f", *range(6))
    assert found.tensors == {
        "a.b": hashlib.sha256(b"I8 [2]\n\x01\x02").hexdigest(),
        "a.w": hashlib.sha256(floats).hexdigest(),
    }
    assert found.config_sha256 == hashlib.sha256(b"{}").hexdigest()


def test_sharding_and_file_order_do_not_change_the_fingerprint(tmp_path):
    whole = fingerprint(save("llama", tmp_path / "whole"))
    sharded = fingerprint(save("llama", tmp_path / "sharded", max_shard_size="20KB"))
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    assert sharded == whole


def test_one_changed_bit_changes_one_tensor_its_block_and_the_whole(tmp_path):
    before = fingerprint(save("llama", tmp_path))
    weights = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name].view(torch.int32)[0, 0] ^= 1
    save_file(weights, tmp_path / "model.safetensors")
    after = fingerprint(tmp_path)
    assert [key for key in before.tensors if before.tensors[key] != after.tensors[key]] == [name]
    assert after.sha256 != before.sha256
    assert after.subset("model.layers.1") != before.subset("model.layers.1")
    assert after.subset("model.layers.0") == before.subset("model.layers.0")


def test_the_config_counts_but_not_who_saved_it(tmp_path):
    before = fingerprint(save("llama", tmp_path))
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"_name_or_path": "x", "transformers_version": "0"}))
    assert fingerprint(tmp_path) == before
    path.write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    after = fingerprint(tmp_path)
    assert after.tensors == before.tensors
    assert after.sha256 != before.sha256


def test_a_block_is_not_confused_with_a_block_whose_number_starts_alike(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    tensors = {f"h.{index}.w": torch.tensor([float(index)]) for index in (1, 10, 11)}
    save_file(tensors, tmp_path / "model.safetensors")
    found = fingerprint(tmp_path)
    assert found.subset("h.1") == found.subset("h.1.") == found.of(["h.1.w"])
    assert found.subset("h") == found.of(["h.11.w", "h.1.w", "h.10.w"])
    assert found.subset("transformer.h.10") == found.of(["h.10.w"])
    with pytest.raises(InputError, match=r"must hold tensors named h\.2\.\*"):
        found.subset("h.2")


def test_an_empty_tensor_has_a_hash_too(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    header = json.dumps({"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert fingerprint(tmp_path).tensors == {"a": hashlib.sha256(b"F32 [0]\n").hexdigest()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw[:-1], "do not match|describes"),
        (lambda raw: raw + b"x", r"describes \d+ bytes and it has \d+"),
        (lambda raw: raw[:5], "its header of .* does not fit its 5 bytes"),
        (lambda raw: b"", "does not fit its 0 bytes"),
        (lambda raw: b"\xff" * 8 + raw[8:], "its header of .* does not fit"),
        (lambda raw: raw[:8] + b"?" + raw[9:], "is not a table of tensors"),
        (lambda raw: raw.replace(b'"F32"', b'"X32"', 1), "unknown dtype X32"),
        (lambda raw: raw.replace(b'"F32"', b'"F64"', 1), "do not match its shape and dtype"),
        (lambda raw: raw.replace(b'"F32"', b"[[1]]", 1), "unknown dtype"),
        (lambda raw: raw.replace(b"[32]", b"[[]]", 1), "is not a table of tensors"),
        (lambda raw: raw.replace(b'"shape"', b'"shade"', 1), "is not a table of tensors"),
    ],
)
def test_a_damaged_file_is_named(change, message, tmp_path):
    spoil(save("llama", tmp_path) / "model.safetensors", change)
    with pytest.raises(InputError, match=message) as caught:
        fingerprint(tmp_path)
    assert "model.safetensors must be a complete safetensors file" in str(caught.value)


def test_an_absent_shard_is_named(tmp_path):
    save("llama", tmp_path, max_shard_size="20KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(InputError, match=f"every file its index names; {shard.name} is absent"):
        fingerprint(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_index_is_named(text, tmp_path):
    save("llama", tmp_path, max_shard_size="20KB")
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(InputError, match=r"index\.json (line 1 )?must be (a )?JSON( object)?"):
        fingerprint(tmp_path)


def test_an_index_cannot_point_out_of_its_folder(tmp_path):
    save("llama", tmp_path, max_shard_size="20KB")
    text = json.dumps({"weight_map": {"a": "../model.safetensors"}})
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(InputError, match="must name files of its own folder"):
        fingerprint(tmp_path)


def test_a_tensor_that_two_shards_hold_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for shard in ("one", "two"):
        save_file({"w": torch.zeros(2)}, tmp_path / f"{shard}.safetensors")
    index = {"weight_map": {"w": "one.safetensors", "v": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="each tensor must be stored once; w is in"):
        fingerprint(tmp_path)


def test_hashing_needs_no_torch(tmp_path):
    save("llama", tmp_path)
    code = (
        "import sys; from pathlib import Path; "
        "from normtweak_core.model.fingerprint import fingerprint; "
        "print(fingerprint(Path(sys.argv[1])).sha256, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [fingerprint(tmp_path).sha256, "False"]
