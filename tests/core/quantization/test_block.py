"""One block and a whole walk: streams, order, propagation, and what the report says."""

import json

import pytest
import torch

from normtweak_core.model.loading import load_causal_lm
from normtweak_core.model.streaming import StreamedModel
from normtweak_core.model.structure import find_linears
from normtweak_core.quantization.block import quantize_block
from normtweak_core.quantization.config import PropagationConfig, QuantizationConfig
from normtweak_core.quantization.linears.inputs import linear_groups
from normtweak_core.quantization.plan import BlockPlan
from normtweak_core.quantization.storage import (
    load_block,
    load_streams,
    save_block,
    save_streams,
    stream_hash,
)
from normtweak_core.quantization.streams import Streams, micro_batches, num_training_windows
from normtweak_core.quantization.walk import BlockWalk
from normtweak_core.tweak.config import NormTweakConfig

OFF = NormTweakConfig(enabled=False)


def walk_of(folder, seeded, samples=16, length=24):
    ids = torch.randint(0, 96, (samples, length), generator=seeded(3))
    return BlockWalk(StreamedModel(folder, torch.float32, "cpu"), ids)


def plan(index, num_blocks, tweak=OFF, **quantization):
    config = QuantizationConfig(**{"bits": 2, "group_size": 16} | quantization)
    return BlockPlan(index, num_blocks, config, tweak, torch.float16)


def run_all(walk, tweak=OFF, **quantization):
    streams, blocks = walk.start(), []
    for index in range(walk.num_blocks):
        settings = plan(index, walk.num_blocks, tweak, **quantization)
        done = quantize_block(walk.load(index), streams, walk.runner(index), settings)
        streams = Streams(done.streams.x_f.clone(), done.streams.x_q.clone())  # as it overwrites
        blocks.append(done)
    return blocks


def test_linears_that_share_an_input_form_groups_in_running_order(tiny_folders, seeded):
    expected = {
        "llama": [
            ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            ["self_attn.o_proj"],
            ["mlp.gate_proj", "mlp.up_proj"],
            ["mlp.down_proj"],
        ],
        "neox": [
            ["attention.query_key_value"],
            ["attention.dense"],
            ["mlp.dense_h_to_4h"],
            ["mlp.dense_4h_to_h"],
        ],
    }
    for name, groups in expected.items():
        walk = walk_of(tiny_folders[name], seeded)
        block = walk.load(0)
        assert linear_groups(block, walk.runner(0), walk.start().x_f[:1]) == groups


@pytest.mark.parametrize("name", ["llama", "neox"])
def test_the_float_stream_is_the_models_own_hidden_states(tiny_folders, seeded, name):
    walk = walk_of(tiny_folders[name], seeded)
    blocks = run_all(walk)
    model = load_causal_lm(tiny_folders[name], torch.float32, "cpu")
    with torch.no_grad():
        states = model(walk.input_ids, output_hidden_states=True, use_cache=False).hidden_states
    for done, state in zip(blocks[:-1], states[1:], strict=False):
        assert torch.allclose(done.streams.x_f, state, atol=1e-5)


def test_the_quantized_stream_is_what_the_quantized_model_computes(tiny_folders, seeded):
    walk = walk_of(tiny_folders["llama"], seeded)
    blocks = run_all(walk, NormTweakConfig(lr=1e-2))
    model = load_causal_lm(tiny_folders["llama"], torch.float32, "cpu")
    with torch.no_grad():
        for index, done in enumerate(blocks):
            block = model.model.layers[index]
            for name, weight in done.layers.items():
                find_linears(block)[name].weight.copy_(weight.dequantize())
            for name, master in done.norms.items():
                block.get_parameter(name).copy_(master.half())
        states = model(walk.input_ids, output_hidden_states=True, use_cache=False).hidden_states
    assert torch.allclose(blocks[0].streams.x_q, states[1], atol=1e-5)
    assert torch.allclose(blocks[1].streams.x_q, states[2], atol=1e-5)


def test_output_errors_and_drift_fall_with_every_stage(tiny_folders, seeded):
    walk = walk_of(tiny_folders["llama"], seeded, samples=64, length=48)
    alone = PropagationConfig(alpha=0.0)
    rtn = run_all(walk, method="rtn", propagation=alone)
    gptq = run_all(walk, propagation=alone)
    propagated = run_all(walk)
    drifts = [blocks[-1].report.drift_quantized for blocks in (rtn, gptq, propagated)]
    assert drifts[0] > drifts[1] > drifts[2]
    assert rtn[0].report.layers[0].output_error is None
    corrected = run_all(walk, method="rtn")
    assert corrected[-1].report.drift_quantized < drifts[0]
    errors = [blocks[0].report.layers[0].output_error for blocks in (corrected, gptq)]
    assert errors[1] < errors[0]


def test_reports_name_every_layer_and_no_problem(tiny_folders, seeded):
    report = run_all(walk_of(tiny_folders["llama"], seeded), percdamp=0.01)[0].report
    assert sorted(row.layer for row in report.layers) == [
        "mlp.down_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "self_attn.k_proj",
        "self_attn.o_proj",
        "self_attn.q_proj",
        "self_attn.v_proj",
    ]
    assert report.left_float == []
    assert report.problems() == report.notes() == []


def test_a_linear_that_is_never_called_is_reported_as_left_float(tiny_folders, seeded):
    walk = walk_of(tiny_folders["llama"], seeded)
    block = walk.load(0)
    block.unused = torch.nn.Linear(32, 32)
    done = quantize_block(block, walk.start(), walk.runner(0), plan(0, 3))
    assert done.report.left_float == ["unused"]
    assert done.report.problems() == ["block 0: unused left in float"]


def test_damping_that_had_to_be_raised_is_a_problem_of_the_block(tiny_folders, seeded):
    walk = walk_of(tiny_folders["llama"], seeded, samples=8, length=2)  # 14 tokens, width 32
    done = quantize_block(walk.load(0), walk.start(), walk.runner(0), plan(0, 3, percdamp=0.0))
    raised = [row for row in done.report.layers if row.damping_raised]
    assert raised
    assert done.report.problems()[0] == (
        f"block 0: damping of {raised[0].layer} raised to {raised[0].percdamp:g}"
    )


def test_a_ridge_that_had_to_be_raised_is_a_problem_of_the_block(tiny_folders, seeded):
    walk = walk_of(tiny_folders["llama"], seeded, samples=8, length=2)  # 14 tokens, width 32
    settings = plan(0, 3, propagation=PropagationConfig(ridge=0.0))
    rows = quantize_block(walk.load(0), walk.start(), walk.runner(0), settings).report
    raised = [row for row in rows.layers if row.ridge_raised]
    assert [row.layer for row in raised] == [row.layer for row in rows.layers]  # all are wider
    assert [row.ridge for row in raised] == pytest.approx([1e-3] * 7)
    assert rows.problems() == [
        f"block 0: ridge of {row.layer} raised to 0.001" for row in rows.layers
    ]


def test_the_ridge_of_the_recipe_is_reported_and_none_where_nothing_was_corrected(
    tiny_folders, seeded
):
    walk = walk_of(tiny_folders["llama"], seeded)
    for alpha, ridge in ((1.0, 0.02), (0.0, 0.0)):
        settings = plan(0, 3, propagation=PropagationConfig(alpha=alpha, ridge=0.02))
        done = quantize_block(walk.load(0), walk.start(), walk.runner(0), settings)
        assert {(row.ridge, row.ridge_raised) for row in done.report.layers} == {(ridge, False)}


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_linears_whose_input_is_always_zero_are_solved_and_reported(tiny_folders, seeded, method):
    walk = walk_of(tiny_folders["llama"], seeded)
    block, streams = walk.load(0), walk.start()
    for norm in (block.input_layernorm, block.post_attention_layernorm):
        norm.weight.zero_()
    done = quantize_block(block, streams, walk.runner(0), plan(0, 3, method=method))
    assert len(done.report.layers) == 7
    for row in done.report.layers:
        assert (row.output_error, row.ridge, row.ridge_raised) == (0.0, 0.01, False)
        if method == "gptq":
            width = done.layers[row.layer].codes.shape[1]
            assert (row.dead_columns, row.weight_error) == (width, 1.0)
            assert not done.layers[row.layer].dequantize().any()
    assert done.report.problems() == []
    assert torch.equal(done.streams.x_q, streams.x_f)  # only the residual passes
    json.dumps(done.report.model_dump(mode="json"), allow_nan=False)  # as it is published


def test_held_out_windows_reach_neither_hessian_nor_gradient(tiny_folders, seeded):
    walk = walk_of(tiny_folders["llama"], seeded)
    assert num_training_windows(16) == 14
    assert num_training_windows(8) == 7
    streams = walk.start()
    changed = Streams(streams.x_f.clone(), streams.x_f.clone())
    changed.x_f[14:] *= 3
    changed.x_q[14:] *= 3
    always = NormTweakConfig(lr=1e-2, rollback=False)
    first, second = (
        quantize_block(walk.load(0), s, walk.runner(0), plan(0, 3, always))
        for s in (streams, changed)
    )
    for name, weight in first.layers.items():
        assert torch.equal(weight.codes, second.layers[name].codes)
    for name, master in first.norms.items():
        assert torch.equal(master, second.norms[name])
    assert first.report.tweak.held_out_before != second.report.tweak.held_out_before


def test_micro_batches_cover_all_windows_once_and_follow_from_the_length():
    parts = micro_batches(torch.zeros(10, 1024, 2))
    assert [(p.start, p.stop) for p in parts] == [(0, 4), (4, 8), (8, 9), (9, 10)]  # 9 train
    assert len(micro_batches(torch.zeros(3, 10_000, 1))) == 3


def test_a_stored_block_and_its_streams_come_back_bit_for_bit(tiny_folders, seeded, tmp_path):
    walk = walk_of(tiny_folders["llama"], seeded)
    settings = plan(0, 3, NormTweakConfig(lr=1e-2, rollback=False))
    done = quantize_block(walk.load(0), walk.start(), walk.runner(0), settings)
    save_block(tmp_path / "block.safetensors", done.layers, done.norms)
    layers, norms = load_block(tmp_path / "block.safetensors", settings.quantization)
    for name, weight in done.layers.items():
        assert torch.equal(layers[name].dequantize(), weight.dequantize())
    save_streams(tmp_path / "streams.safetensors", done.streams)
    stored = load_streams(tmp_path / "streams.safetensors")
    replayed = walk.replay(0, walk.start(), layers, norms, torch.float16)
    for other in (stored, replayed):
        assert stream_hash(other.x_f) == stream_hash(done.streams.x_f)
        assert stream_hash(other.x_q) == stream_hash(done.streams.x_q)


def test_the_same_block_twice_gives_the_same_bits(tiny_folders, seeded, tmp_path):
    hashes = set()
    for attempt in range(2):
        walk = walk_of(tiny_folders["neox"], seeded)
        done = quantize_block(
            walk.load(0), walk.start(), walk.runner(0), plan(0, 3, NormTweakConfig())
        )
        save_block(tmp_path / f"{attempt}", done.layers, done.norms)
        hashes.add((tmp_path / f"{attempt}").read_bytes())
    assert len(hashes) == 1
