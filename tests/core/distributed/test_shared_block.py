"""A block that several ranks share comes out as that of one, bit for bit, whatever the settings."""

import threading

import pytest
import torch

from normtweak_core.distributed.ranks import ALONE
from normtweak_core.finetune.config import BlockTrainingConfig
from normtweak_core.model.streaming import StreamedModel
from normtweak_core.quantization.block import help_with, quantize_block
from normtweak_core.quantization.config import QuantizationConfig
from normtweak_core.quantization.plan import BlockPlan
from normtweak_core.quantization.streams import Streams, micro_batches, share_of
from normtweak_core.quantization.walk import BlockWalk
from normtweak_core.tweak.config import NormTweakConfig
from tests.core.distributed.threads import ThreadRanks, together
from tests.core.model.families import save

SAMPLES, LENGTH = 20, 12
TWEAK = NormTweakConfig(lr=1e-2, rollback=False)
OFF = NormTweakConfig(enabled=False)
SPARE = ("before", "target")  # room that processes share
RTN = {"method": "rtn", "propagation": {"alpha": 0.0}}
CASES = {
    "llama": ("llama", {}, TWEAK),
    "local target": ("llama", {}, NormTweakConfig(lr=1e-2, target="local")),
    "without propagation": ("llama", {"propagation": {"alpha": 0.0}}, OFF),
    "rtn": ("llama", RTN, OFF),
    "neox": ("neox", {}, TWEAK),
    "gpt2, whose weights lie the other way round": ("gpt2", {}, TWEAK),
    "mixture": ("mixtral", {}, TWEAK),
    "mixture, rtn": ("mixtral", RTN, OFF),
    "trained": ("llama", {}, OFF),
    "rounded and smoothed": ("llama", {"symmetric": True, "activation_bits": 8}, TWEAK),
}

# Three share no whole branches of the tree; a mixture takes long.
SIZES = {"llama": (2, 3, 4), "mixture": (3,), "mixture, rtn": (3,), "rtn": (3,), "trained": (3,)}
SIZES |= {"rounded and smoothed": (3,)}


@pytest.fixture(autouse=True)
def two_windows_at_once(monkeypatch):
    monkeypatch.setattr("normtweak_core.quantization.streams.TOKENS_PER_MICRO_BATCH", 2 * LENGTH)


@pytest.fixture(scope="module")
def folder_of(tiny_folders, tmp_path_factory):
    made = dict(tiny_folders)

    def folder(name):
        if name not in made:
            made[name] = save(name, tmp_path_factory.mktemp("shared"))
        return made[name]

    return folder


# transformers changes its classes while it makes a model, and threads would leave them so.
LOADING = threading.Lock()
TRAINING = {"trained": BlockTrainingConfig(enabled=True, steps=12, batch=2, lr=0.05)}


def block_by(ranks, folder, settings, tweak, streams, training):
    ids = torch.randint(0, 90, (SAMPLES, LENGTH), generator=torch.Generator().manual_seed(3))
    with LOADING:
        walk = BlockWalk(StreamedModel(folder, torch.float32, "cpu"), ids)
        block = walk.load(1)
    config = QuantizationConfig(bits=3, group_size=16, **settings)
    plan = BlockPlan(1, 3, config, tweak, torch.float16, training)
    given = block, streams, walk.runner(1), plan
    if ranks.is_first:
        return quantize_block(*given, ranks=ranks)
    return help_with(*given, ranks)


@pytest.mark.parametrize("case", CASES)
def test_a_shared_block_is_that_of_one_process(case, folder_of, seeded):
    name, settings, tweak = CASES[case]
    training = TRAINING.get(case, BlockTrainingConfig())
    x_f = torch.randn(SAMPLES, LENGTH, 32, generator=seeded(1))
    x_q = x_f + 0.1 * torch.randn(x_f.shape, generator=seeded(2))

    def done(size):
        streams = Streams(
            x_f.clone(),
            x_q.clone(),
            {} if size == 1 else {use: torch.full_like(x_f, torch.nan) for use in SPARE},
        )
        given = folder_of(name), settings, tweak, streams, training
        if size == 1:
            return block_by(ALONE, *given)
        return together(size, lambda ranks: block_by(ranks, *given))

    alone = done(1)
    if training.enabled:
        assert alone.report.training.accepted
    for size in SIZES.get(case, (2, 4)):
        shared = done(size)
        assert shared.report == alone.report
        assert shared.layers.keys() == alone.layers.keys()
        for layer, weight in alone.layers.items():
            for part in ("codes", "scales", "zeros"):
                assert torch.equal(getattr(shared.layers[layer], part), getattr(weight, part))
        for norm, master in alone.norms.items():
            assert torch.equal(shared.norms[norm], master)
        assert torch.equal(shared.streams.x_f, alone.streams.x_f)
        assert torch.equal(shared.streams.x_q, alone.streams.x_q)
        for kind, values in alone.drift_tweaked.tensors().items():
            assert torch.equal(shared.drift_tweaked.tensors()[kind], values)


def test_every_micro_batch_is_whole_and_someones():
    windows = torch.zeros(SAMPLES, LENGTH, 1)
    for size in (1, 2, 3, 4, 8):
        shares = [share_of(windows, ThreadRanks(rank, size, {})) for rank in range(size)]
        training = [part for share in shares for part in share.training]
        held_out = [part for share in shares for part in share.held_out]
        assert training + held_out == micro_batches(windows)
        assert len(training) == 9
        assert [leaf for share in shares for leaf in share.leaves] == [0, 1, 2, 3, 4, 5, 6, 7, 7]
