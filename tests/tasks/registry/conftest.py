"""A real sqlite registry per test, and small real exports to put into it."""

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")

import mlflow
import torch
from mlflow import MlflowClient
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from normtweak_core.export.payload import payload_sha256
from tasks.registry.versions import Registered, register_export

WORDS = ["<s>", "</s>", "once", "upon", "a", "time", "there", "was", "tree", "cat", "dog", "sun"]

CHAT_TEMPLATES = {
    "default": "{{ bos_token }}{{ messages[0].content }}",
    "tool_use": "{{ messages[0].content }}{{ tools | length }}",
}


def write_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<s>",
        chat_template=CHAT_TEMPLATES,
    ).save_pretrained(folder)


def random_llama(seed: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5, generator=generator)
    return model


def write_export(folder: Path, seed: int) -> Path:
    random_llama(seed).save_pretrained(folder)
    write_tokenizer(folder)
    (folder / "normtweak.json").write_text("{}")
    return folder


@dataclass(frozen=True)
class Registry:
    """A registry in a folder, and the arguments of one registration."""

    root: Path
    export: Path
    uri: str
    name: str = "tiny-w4"
    alias: str = "candidate"
    metrics: tuple = (("perplexity/quantized", 12.5), ("kl/mean", 0.25), ("seconds", 3.0))

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.uri, self.uri)

    def arguments(self, **changes) -> dict:
        report = self.root / "drift.md"
        report.write_text("# drift")
        arguments = {
            "export_dir": self.export,
            "name": self.name,
            "export_sha256": payload_sha256(self.export),
            "metrics": dict(self.metrics),
            "tags": {"source_model": "reference:llama", "bits": "4"},
            "reports": [report],
            "alias": self.alias,
            "tracking_uri": self.uri,
            "artifact_root": self.root / "mlartifacts",
            "lock_dir": self.root / "locks",
        }
        return arguments | changes

    def register(self, **changes) -> Registered:
        return register_export(**self.arguments(**changes))

    def with_seed(self, seed: int) -> "Registry":
        folder = self.root / f"export-{seed}"
        return replace(self, export=write_export(folder, seed))

    def versions(self) -> list:
        return self.client.search_model_versions(f"name = '{self.name}'")

    def logged_models(self) -> list:
        experiment = self.client.get_experiment_by_name("normtweak")
        return self.client.search_logged_models([experiment.experiment_id])


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory) -> Path:
    """A migrated database: making one takes longer than a test."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}", f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def tiny_export(tmp_path_factory) -> Path:
    return write_export(tmp_path_factory.mktemp("export") / "tiny", seed=0)


@pytest.fixture
def registry(tmp_path, empty_database, tiny_export) -> Registry:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    export = tmp_path / "export"
    shutil.copytree(tiny_export, export)
    (tmp_path / "mlartifacts").mkdir()
    return Registry(root=tmp_path, export=export, uri=f"sqlite:///{tmp_path / 'mlflow.db'}")


@pytest.fixture(autouse=True)
def mlflow_settings_are_left_alone():
    """Registering must not switch the process to another store."""
    before = mlflow.get_tracking_uri(), mlflow.active_run()
    yield
    assert (mlflow.get_tracking_uri(), mlflow.active_run()) == before
