"""Of a model that was measured no block stays in memory; one that cannot be walked stays whole."""

import gc
from types import SimpleNamespace

import pytest
import torch
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from normtweak_core.errors import InputError
from normtweak_core.evaluate.divergence import perplexity
from normtweak_core.export.config import ExportConfig
from normtweak_core.export.writer import write_export
from normtweak_core.model.streaming import StreamedModel
from tasks.models.subjects import Subject
from tasks.stages.evaluate import _walked
from tests.tiny_exports import quantize_all, save_tiny_model, tiny_config


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    folder = tmp_path_factory.mktemp("walked")
    source = save_tiny_model(folder / "model", tiny_config("llama"))
    export = folder / "export"
    write_export(export, source, quantize_all(source, 4, 32, True), {}, ExportConfig(format="gptq"))

    def subject(kind, path):
        tokenizer = {"tokenizer_sha256": "", "tokenizer_path": source}
        return Subject(
            kind, kind, path, "", dtype="float32", device="cpu", source=source, **tokenizer
        )

    places = {"float": source, "export": export, "quantized": export}
    return {kind: subject(kind, path) for kind, path in places.items()}


def blocks_in_memory() -> int:
    gc.collect()
    found = [one for one in gc.get_objects() if type(one) is LlamaDecoderLayer]
    return sum(any(not p.is_meta for p in block.parameters()) for block in found)


def walked(subject, writes=True):
    windows = torch.arange(96).view(4, 24)
    text = SimpleNamespace(path="text.txt")
    found, written = _walked(subject, windows, text, lambda done, blocks: None, writes)
    return found, written, windows


@pytest.mark.parametrize("kind", ["float", "export", "quantized"])
def test_no_block_stays_of_a_model_that_was_walked(subjects, kind):
    before = blocks_in_memory()
    found, written, windows = walked(subjects[kind])
    assert blocks_in_memory() == before
    assert len(written) == 3
    assert perplexity(found, windows) == perplexity(subjects[kind].whole(), windows)


def test_a_model_that_cannot_be_walked_is_measured_whole(subjects, monkeypatch):
    expected = perplexity(walked(subjects["float"])[0], walked(subjects["float"])[2])

    def refuse(self, ids, mask=None):
        raise InputError("the model must run its blocks in order")

    monkeypatch.setattr(StreamedModel, "embed", refuse)
    found, written, windows = walked(subjects["float"], writes=False)
    assert isinstance(found, PreTrainedModel)
    assert written == []
    assert perplexity(found, windows) == expected


def test_what_is_wrong_with_a_model_is_told_by_its_loading(subjects, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "nothing"}')
    broken = Subject("broken", "float", tmp_path, "", "", "float32", "cpu")
    with pytest.raises(InputError, match="transformers must know the model"):
        broken.streamed()
