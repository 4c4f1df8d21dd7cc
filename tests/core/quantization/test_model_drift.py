"""The drift in a whole model is that of the streams between its blocks."""

import pytest
import torch

from normtweak_core.model.loading import load_causal_lm
from normtweak_core.model.streaming import HeldModel, StreamedModel
from normtweak_core.model.structure import find_blocks
from normtweak_core.quantization.block import quantize_block
from normtweak_core.quantization.config import QuantizationConfig
from normtweak_core.quantization.drift import drift
from normtweak_core.quantization.model_drift import model_drift
from normtweak_core.quantization.plan import BlockPlan
from normtweak_core.quantization.storage import quantized_copy
from normtweak_core.quantization.walk import BlockWalk
from normtweak_core.tweak.config import NormTweakConfig

SETTINGS = QuantizationConfig(bits=2, group_size=16), NormTweakConfig(enabled=False)


def rounded(folder, ids):
    """A whole quantized model, and the drift that the walk found behind each of its blocks."""
    walk = BlockWalk(StreamedModel(folder, torch.float32, "cpu"), ids)
    model = load_causal_lm(folder, torch.float32, "cpu")
    streams, found = walk.start(), []
    for index, block in enumerate(find_blocks(model).modules):
        plan = BlockPlan(index, walk.num_blocks, *SETTINGS, torch.float16)
        done = quantize_block(walk.load(index), streams, walk.runner(index), plan)
        copy = quantized_copy(walk.load(index), done.layers, done.norms, torch.float16)
        block.load_state_dict(copy.state_dict())
        streams = done.streams
        found.append(done.drift_tweaked)
    return model, found


@torch.no_grad()
def hooked_drift(quantized, float_model, ids):
    """The drift that hooks see while two whole models run window by window."""
    models = (quantized, float_model)
    seen = {id(model): [[] for _ in find_blocks(model).modules] for model in models}
    handles = []
    for model in models:
        for block, outputs in zip(find_blocks(model).modules, seen[id(model)], strict=True):

            def note(_, args, output, outputs=outputs):
                outputs.append(output[0] if isinstance(output, tuple) else output)

            handles.append(block.register_forward_hook(note))
    for window in ids.split(1):
        for model in models:
            model(window, use_cache=False)
    for handle in handles:
        handle.remove()
    streams = zip(seen[id(quantized)], seen[id(float_model)], strict=True)
    return [drift(torch.cat(x_q), torch.cat(x_f)) for x_q, x_f in streams]


@pytest.mark.parametrize("name", ["llama", "neox"])
def test_a_whole_model_drifts_as_its_streams_do(tiny_folders, seeded, name):
    ids = torch.randint(0, 96, (8, 24), generator=seeded(3))
    quantized, expected = rounded(tiny_folders[name], ids)
    slow = hooked_drift(quantized, load_causal_lm(tiny_folders[name], torch.float32, "cpu"), ids)
    float_model = StreamedModel(tiny_folders[name], torch.float32, "cpu")
    found = model_drift(HeldModel(quantized), float_model, ids)
    assert len(found) == len(expected) == 3
    assert found[-1].relative_norm > 0.05
    for whole, block in zip(found, expected, strict=True):
        for field, tensor in whole.tensors().items():
            torch.testing.assert_close(tensor, block.tensors()[field], rtol=1e-4, atol=1e-5)
    for whole, walked in zip(slow, found, strict=True):
        for field, tensor in whole.tensors().items():
            assert torch.equal(tensor, walked.tensors()[field])


def test_a_model_does_not_drift_from_itself(tiny_folders, seeded):
    ids = torch.randint(0, 96, (2, 8), generator=seeded(4))
    models = [StreamedModel(tiny_folders["neox"], torch.float32, "cpu") for _ in range(2)]
    for one in model_drift(*models, ids):
        assert not one.square_error.any()
        assert torch.equal(one.x_q.mean, one.x_f.mean)
