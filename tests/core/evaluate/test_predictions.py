"""Models walked block by block predict what whole models do, bit for bit, in flat memory."""

import gc
import subprocess
import sys
import weakref

import pytest
import torch

from normtweak_core.calibration import quality
from normtweak_core.evaluate import predictions
from normtweak_core.evaluate.divergence import compare, compare_each, perplexity
from normtweak_core.evaluate.predictions import pieces, walked
from normtweak_core.evaluate.samples import written
from normtweak_core.export.config import ExportConfig
from normtweak_core.export.loading import load_export, stream_export, whole_or_spread_export
from normtweak_core.export.writer import write_export, write_ternary_export
from normtweak_core.memory import limited
from normtweak_core.model.loading import load_causal_lm
from normtweak_core.model.source import reference_folder
from normtweak_core.model.streaming import HeldModel, StreamedModel
from normtweak_core.model.tokenizer import load_tokenizer
from tests.tiny_exports import quantize_all, save_tiny_model, ternary_all, tiny_config

FORMS = ("compressed-tensors", "gptq", "bitnet")


@pytest.fixture(scope="module", params=["llama", "neox"])
def source(request, tmp_path_factory):
    return save_tiny_model(
        tmp_path_factory.mktemp("float"), tiny_config(request.param, max_position_embeddings=1024)
    )


def exported(source, folder, form):
    if form == "bitnet":
        layers = ternary_all(source, torch.float16)
        write_ternary_export(
            folder, source, layers, {}, ExportConfig(dtype="float16"), rms_norm_eps=1e-5
        )
    else:
        layers = quantize_all(source, 3, 32, False)
        write_export(folder, source, layers, {}, ExportConfig(format=form, dtype="float16"))
    return folder


def some_windows(model, count=5, length=600):
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, model.config.vocab_size, (count, length), generator=generator)


@pytest.mark.parametrize("form", FORMS)
def test_what_a_walk_finds_is_what_whole_models_find(source, tmp_path, form):
    folder = exported(source, tmp_path / "out", form)
    dtypes = (torch.float16, torch.float32)
    whole = [load_export(folder, source, dtype, "cpu") for dtype in dtypes]
    beside = load_causal_lm(source, torch.float32, "cpu")
    windows = some_windows(beside)  # batches of 3 and of 2
    expected = compare_each(whole, beside, windows)

    streamed = [stream_export(folder, source, dtype, "cpu") for dtype in dtypes]
    reference = walked(StreamedModel(source, torch.float32, "cpu"), windows)
    found = compare_each([walked(one, windows) for one in streamed], reference, windows)
    assert found == expected
    assert found[0] != found[1]
    assert found[0].kl.mean > 1e-4
    assert perplexity(reference, windows) == expected[0].float_result


@pytest.mark.parametrize("form", FORMS)
def test_an_export_that_has_no_room_is_spread_and_computes_the_same(source, tmp_path, form):
    folder = exported(source, tmp_path / "out", form)
    windows = some_windows(load_causal_lm(source, torch.float32, "cpu"), 2, 40)
    for dtype in (torch.float16, torch.float32):
        wanted = load_export(folder, source, dtype, "cpu")(windows).logits
        with limited(1):
            spread = whole_or_spread_export(folder, source, dtype, "cpu")
        assert any(one.is_meta for one in spread.parameters())
        assert torch.equal(spread(windows).logits, wanted)


@pytest.mark.parametrize("form", FORMS)
def test_a_block_of_an_export_is_freed_when_nobody_holds_it(source, tmp_path, form):
    """At once: what waits for the garbage collector is in memory as well."""
    folder = exported(source, tmp_path / "out", form)
    streamed = stream_export(folder, source, torch.float16, "cpu")
    streamed.embed(torch.zeros(1, 2, dtype=torch.int64))
    gc.disable()
    try:
        block = weakref.ref(streamed.load_block(1))
        assert block() is None
    finally:
        gc.enable()


def test_a_model_that_is_let_go_of_leaves_memory_at_once(source):
    gc.disable()
    try:
        streamed = StreamedModel(source, torch.float32, "cpu")
        streamed.logits(torch.arange(6)[None])
        model, head = weakref.ref(streamed), weakref.ref(streamed.model.get_output_embeddings())
        del streamed
        assert model() is None
        assert head() is None
    finally:
        gc.enable()


def test_the_likelihood_of_a_text_is_that_of_the_whole_model(source, monkeypatch):
    windows = some_windows(load_causal_lm(source, torch.float32, "cpu"), length=40)
    for most in (quality.LOGIT_BYTES, 3 * 40 * 256 * 4):  # all windows at once, and three
        monkeypatch.setattr(quality, "LOGIT_BYTES", most)
        found, expected = (
            quality.window_nll(model, windows)
            for model in (
                StreamedModel(source, torch.float32, "cpu"),
                load_causal_lm(source, torch.float32, "cpu"),
            )
        )
        assert torch.equal(found, expected)


def test_a_held_model_is_walked_like_one_on_disk_and_then_freed(source):
    windows = some_windows(load_causal_lm(source, torch.float32, "cpu"), length=40)
    held = HeldModel(load_causal_lm(source, torch.float32, "cpu"))
    found = walked(held, windows)
    held.release()
    assert perplexity(found, windows) == perplexity(
        load_causal_lm(source, torch.float32, "cpu"), windows
    )
    on_disk = StreamedModel(source, torch.float32, "cpu")
    kept = on_disk.model.state_dict(), held.model.state_dict()
    sizes = [sum(not tensor.is_meta for tensor in one.values()) for one in kept]
    assert sizes[0] == sizes[1]


def test_pieces_cover_a_batch_once_in_the_order_of_its_windows(monkeypatch):
    monkeypatch.setattr(predictions, "LOGITS_PER_PIECE", 70)
    places = torch.arange(5 * 12).view(5, 12)
    for vocabulary, most in ((2, 2), (1, 5), (10, 1), (1000, 1)):
        parts = list(pieces((5, 12), vocabulary))
        assert torch.equal(torch.cat([places[part].flatten() for part in parts]), places.flatten())
        assert max(len(places[part]) for part in parts) == most
        assert max(places[part].numel() for part in parts) <= max(1, 70 // vocabulary)


@pytest.mark.parametrize("most", [96 * 40, 96 * 7, 96])
def test_a_head_in_slices_of_tokens_changes_rounding_alone(source, monkeypatch, most):
    """A matrix product may add the terms of a row in another order where it has fewer rows."""
    streamed = StreamedModel(source, torch.float32, "cpu")
    whole = load_causal_lm(source, torch.float32, "cpu")
    windows = some_windows(whole, length=40)
    expected = compare(whole, whole, windows).metrics()
    monkeypatch.setattr(predictions, "LOGITS_PER_PIECE", most)
    found = compare(walked(streamed, windows), whole, windows).metrics()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("kept", [0, 1 << 27])
def test_a_walked_model_writes_what_the_whole_one_does(monkeypatch, kept):
    monkeypatch.setattr("normtweak_core.model.streaming.KEPT_BYTES", kept)
    folder = reference_folder("llama")
    whole = load_causal_lm(folder, torch.float32, "cpu")
    tokenizer, windows = load_tokenizer(folder), some_windows(whole, 4, 32)
    streamed = StreamedModel(folder, torch.float32, "cpu")
    assert written(streamed, tokenizer, windows) == written(whole, tokenizer, windows)
    assert len(streamed._kept) == (whole.config.num_hidden_layers if kept else 0)


MEMORY = """
import sys
from pathlib import Path
import torch
from normtweak_core.evaluate import divergence, predictions
from normtweak_core.model import streaming

def status(name):
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) / 1024

streaming.KEPT_BYTES = 0
windows = torch.randint(0, 90, (2, 32), generator=torch.Generator().manual_seed(0))

def measure(folder):
    models = (streaming.StreamedModel(Path(folder), torch.float32, "cpu") for _ in range(2))
    walked = [predictions.walked(model, windows) for model in models]
    divergence.compare(*walked, windows)

shallow, *others = sys.argv[1:]
measure(shallow)  # what libraries take once
for folder in others:
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    measure(folder)
    print(status("VmHWM") - before)
"""


def test_peak_memory_of_a_paired_evaluation_is_flat_in_depth(tmp_path):
    wide = {"hidden_size": 384, "intermediate_size": 1536}  # 9 MiB a block in float32
    folders = [
        save_tiny_model(
            tmp_path / str(depth), tiny_config("llama", num_hidden_layers=depth, **wide)
        )
        for depth in (2, 4, 8)
    ]
    child = [sys.executable, "-c", MEMORY, str(folders[0]), *map(str, folders)]
    told = subprocess.run(child, capture_output=True, text=True, check=True).stdout
    peaks = [float(line) for line in told.splitlines()]
    assert max(peaks) - min(peaks) < 9, peaks  # MiB: of two whole models 18 a block
