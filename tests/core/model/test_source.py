import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from families import save
from safetensors.torch import save_file

import normtweak_core.model.source as source_module
from normtweak_core.errors import InputError
from normtweak_core.model.config import ModelConfig
from normtweak_core.model.source import (
    check_model_folder,
    model_context,
    reference_folder,
    resolve_device,
    resolve_source,
    with_dtype,
)
from normtweak_core.reference.architectures import REFERENCE_NAMES

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


def resolve(source, revision=None):
    return resolve_source(ModelConfig(source=str(source), revision=revision))


def folder_with(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def with_weights(folder):
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder


def test_a_local_folder_is_itself(tmp_path):
    folder = save("llama", tmp_path / "model")
    found = resolve(folder)
    assert (found.path, found.name, found.revision) == (folder.resolve(), str(folder), None)


def test_a_folder_wins_over_a_hub_id_of_its_name(tmp_path, monkeypatch):
    save("llama", tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    assert resolve("org/name").path == tmp_path / "org" / "name"


@pytest.mark.parametrize(
    "source", ["nope", "./nope", "./no/pe", "/no/pe", "a/b/c", "../a/b", "a b/c"]
)
def test_a_missing_folder_is_said_at_once(source):
    started = time.perf_counter()
    with pytest.raises(
        InputError, match=r"must be a folder, a hub id .* no folder is called"
    ) as err:
        resolve(source)
    assert time.perf_counter() - started < 0.5
    assert repr(source) in str(err.value)


def test_an_unknown_reference_model_lists_the_known_ones():
    with pytest.raises(InputError, match="must be one of llama, neox; got 'bert'"):
        resolve("reference:bert")


def test_a_reference_model_that_is_absent_says_how_to_make_it(tmp_path, monkeypatch):
    monkeypatch.setattr(source_module, "__file__", str(tmp_path / "model" / "source.py"))
    with pytest.raises(InputError, match="normtweak reference train neox"):
        resolve("reference:neox")


@pytest.mark.parametrize("name", REFERENCE_NAMES)
def test_reference_models_lie_in_the_package(name, tmp_path, monkeypatch):
    monkeypatch.setattr(source_module, "__file__", str(tmp_path / "model" / "source.py"))
    folder = tmp_path / "reference" / "models" / name
    folder.mkdir(parents=True)
    with_weights(folder_with(folder, LLAMA))
    assert reference_folder(name) == folder
    assert resolve(f"reference:{name}").path == folder


def test_a_file_is_not_a_folder(tmp_path):
    path = save("llama", tmp_path) / "config.json"
    with pytest.raises(InputError, match=r"must be a folder; .*config\.json is a file"):
        resolve(path)


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"must hold config\.json; .* does not"):
        resolve(tmp_path)


@pytest.mark.parametrize(("text", "what"), [("{", "must be JSON"), ("[]", "it is a list")])
def test_a_damaged_config_is_refused(text, what, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=what):
        resolve(tmp_path)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("pytorch_model.bin", "must hold safetensors weights; it holds only pickled ones"),
        ("consolidated.safetensors", r"it holds consolidated\.safetensors"),
        ("notes.txt", "it holds neither"),
    ],
)
def test_weights_in_another_form_are_refused(file, message, tmp_path):
    (folder_with(tmp_path, LLAMA) / file).write_bytes(b"")
    with pytest.raises(InputError, match=message):
        resolve(tmp_path)


@pytest.mark.parametrize("source", ["reference:llama", "."])
def test_a_revision_is_refused_where_there_is_none(source):
    with pytest.raises(InputError, match=r"model\.revision is for hub ids"):
        resolve(source, "main")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"num_local_experts": 8}, "has num_local_experts: 8, which is not supported yet"),
        ({"text_config": {"num_experts": 4}}, "has num_experts: 4, which is not supported yet"),
        ({"n_routed_experts": 64}, "has n_routed_experts: 64, which is not supported yet"),
        ({"is_encoder_decoder": True}, r"is an encoder-decoder \(llama\)"),
        ({"architectures": ["LlamaForTokenClassification"]}, "is LlamaForTokenClassification"),
        ({"model_type": None}, "must name its model_type"),
        (
            {"model_type": "home_made", "auto_map": {"AutoModel": "m.M"}},
            r"brings its own \(auto_map\), which is never executed here",
        ),
    ],
)
def test_what_is_no_dense_decoder_is_refused(extra, message, tmp_path):
    folder = with_weights(folder_with(tmp_path, LLAMA | extra))
    for check in (check_model_folder, resolve):
        with pytest.raises(InputError, match=message):
            check(folder)


def test_a_quantized_model_can_be_found_but_not_quantized(tmp_path):
    folder = folder_with(tmp_path, LLAMA | {"quantization_config": {"quant_method": "gptq"}})
    assert resolve(with_weights(folder)).path == tmp_path
    with pytest.raises(InputError, match=r"already quantized \(gptq\)"):
        check_model_folder(folder)


@pytest.mark.parametrize(
    "extra", [{"auto_map": {"AutoModel": "m.M"}}, {"num_experts": 0}, {"architectures": None}]
)
def test_a_dense_decoder_is_accepted(extra, tmp_path):
    check_model_folder(folder_with(tmp_path, LLAMA | extra))


@pytest.mark.parametrize(("family", "context"), [("gpt2", 64), ("llama", 64), ("bloom", None)])
def test_the_context_is_what_the_config_says(family, context, tmp_path):
    assert model_context(save(family, tmp_path)) == context


def test_a_context_that_the_file_leaves_out_is_the_default_of_the_family(tmp_path):
    assert model_context(folder_with(tmp_path, {"model_type": "falcon"})) == 2048


def test_the_context_of_a_model_that_nobody_knows_is_an_error(tmp_path):
    with pytest.raises(InputError, match="transformers must know the model"):
        model_context(folder_with(tmp_path, {"model_type": "home_made"}))


def lay_out_cache(home, files, commit=COMMIT):
    repo = home / "hub" / "models--org--name"
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    for name in files:
        (repo / "blobs").mkdir(exist_ok=True)
        (repo / "blobs" / name).write_bytes(files[name])
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    return snapshot


def test_every_file_of_a_tokenizer_is_fetched_and_no_other_folder(tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    from normtweak_core.model.hub import fetch_from_hub

    snapshot, asked = lay_out_cache(tmp_path, CACHED), []

    def download(repo, allow_patterns, ignore_patterns=None, **options):
        wanted = filter_repo_objects(
            REPOSITORY, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        )
        asked.append((options["revision"], sorted(wanted)))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert fetch_from_hub("org/name", "main") == snapshot
    assert asked == [
        ("main", ["config.json"]),
        ("main", ["bpe.codes", "config.json", "model.safetensors", "tekken.json", "vocab.model"]),
        (COMMIT, ["additional_chat_templates/tool_use.jinja"]),
    ]


def resolve_apart(home, source, revision=None, offline="1"):
    """Resolve in a fresh process, whose hub library reads its settings anew."""
    code = (
        "import json, sys\n"
        "from normtweak_core.errors import InputError\n"
        "from normtweak_core.model.config import ModelConfig\n"
        "from normtweak_core.model.source import resolve_source\n"
        "config = ModelConfig(**json.loads(sys.argv[1]))\n"
        "try:\n"
        "    found = resolve_source(config)\n"
        "    answer = [str(found.path), found.name, found.revision]\n"
        "except InputError as error:\n"
        "    answer = str(error)\n"
        "print(json.dumps([answer, 'torch' in sys.modules]))\n"
    )
    config = json.dumps({"source": source, "revision": revision})
    environment = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": offline}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", code, config],
        capture_output=True,
        text=True,
        check=True,
        cwd=home,
        env=environment,
    )
    answer, torch_imported = json.loads(done.stdout)
    assert not torch_imported
    return answer


WEIGHTS = (2).to_bytes(8, "little") + b"{}"
REPOSITORY = ["config.json", "model.safetensors", "bpe.codes", "tekken.json", "vocab.model"]
REPOSITORY += ["additional_chat_templates/tool_use.jinja", "onnx/config.json", "original/x.model"]
REPOSITORY += ["modeling.py", "pytorch_model.bin", "additional_chat_templates/run.py"]
CACHED = {"config.json": json.dumps(LLAMA).encode(), "model.safetensors": WEIGHTS}


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_cached_hub_model_is_found_offline(revision, tmp_path):
    snapshot = lay_out_cache(tmp_path, CACHED)
    assert resolve_apart(tmp_path, "org/name", revision) == [str(snapshot), "org/name", COMMIT]


def test_a_cached_commit_needs_no_look_at_the_hub(tmp_path):
    snapshot = lay_out_cache(tmp_path, CACHED)
    started = time.perf_counter()
    answer = resolve_apart(tmp_path, "org/name", COMMIT, offline="0")
    assert answer == [str(snapshot), "org/name", COMMIT]
    assert time.perf_counter() - started < 10  # one failed request would be retried for longer


@pytest.mark.parametrize(("source", "revision"), [("org/other", None), ("org/name", "v9")])
def test_a_hub_model_that_is_not_cached_is_an_error_offline(source, revision, tmp_path):
    lay_out_cache(tmp_path, CACHED)
    answer = resolve_apart(tmp_path, source, revision)
    assert f"the hub model {source}" in answer
    assert "must be in the local cache or the hub within reach" in answer


def test_a_cached_hub_model_without_weights_is_an_error_offline(tmp_path):
    lay_out_cache(tmp_path, {"config.json": CACHED["config.json"]})
    assert "must hold model.safetensors" in resolve_apart(tmp_path, "org/name")


def test_a_hub_model_of_experts_is_refused_by_its_hub_id(tmp_path):
    config = json.dumps(LLAMA | {"num_experts": 8}).encode()
    lay_out_cache(tmp_path, CACHED | {"config.json": config})
    answer = resolve_apart(tmp_path, "org/name")
    assert answer.startswith("a mixture of experts must store each matrix of each expert as")
    assert "org/name has num_experts: 8, which is not supported yet" in answer


def test_devices_are_resolved():
    assert resolve_device("cpu") == "cpu"
    found = resolve_device("auto")
    assert found == ("cuda:0" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("device", ["", "gpu", "cuda:", "cuda:x", "mps", "cpu:0", "cuda:-1"])
def test_an_unknown_device_is_refused(device):
    with pytest.raises(InputError, match="must be auto, cpu, cuda or cuda:N; found"):
        resolve_device(device)


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(InputError, match=r"found cuda:99, and torch sees \d+ CUDA devices"):
        resolve_device("cuda:99")


@pytest.mark.parametrize(
    ("stored", "found"),
    [
        ("float16", "float16"),
        ("bfloat16", "bfloat16"),
        ("float32", "float32"),
        ("float64", "float32"),
    ],
)
def test_auto_is_the_type_that_most_weights_are_stored_in(tmp_path, stored, found):
    few = torch.zeros(3, dtype=torch.float64 if stored == "float32" else torch.float32)
    tensors = {"many": torch.zeros(9, dtype=getattr(torch, stored)), "few": few}
    tensors["codes"] = torch.zeros(99, dtype=torch.int32)
    save_file(tensors, tmp_path / "model.safetensors")
    assert with_dtype(ModelConfig(dtype="auto"), tmp_path).dtype == found
    assert with_dtype(ModelConfig(dtype="bfloat16"), tmp_path).dtype == "bfloat16"


def test_auto_needs_a_float(tmp_path):
    save_file({"codes": torch.zeros(9, dtype=torch.int32)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"the weights must be floats; none of .* is"):
        with_dtype(ModelConfig(dtype="auto"), tmp_path)
