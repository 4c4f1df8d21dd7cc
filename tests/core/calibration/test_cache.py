import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, LlamaConfig, RwkvConfig, RwkvForCausalLM
from transformers.cache_utils import DynamicLayer

from normtweak_core.calibration.cache import (
    MAX_WINDOWS,
    cache_name,
    make_room,
    window_bytes,
    windows_at_once,
)
from normtweak_core.calibration.generate import generate_windows
from normtweak_core.errors import InputError
from normtweak_core.memory import available_memory
from tests.core.model.families import build

LENGTH = 12
KEPT = ("keys", "values", "conv_states", "recurrent_states")
WRITERS = ["llama", "gpt_neox", "gemma3", "mamba", "lfm2", "falcon_h1", "deepseek_v2", "qwen3_5"]


@torch.no_grad()
def caches(model, ids, roomy):
    """Return cache and logits after each token of the ids, read one by one."""
    name, cache = cache_name(model), None
    for position in range(ids.shape[1]):
        out = model(input_ids=ids[:, position : position + 1], use_cache=True, **{name: cache})
        if roomy and cache is None:
            make_room(out[name], ids.shape[1])
        cache = out[name]
        yield cache, out.logits


def held(value):
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, dict):
        value = value.values()
    return sum(map(held, value)) if hasattr(value, "__iter__") and not isinstance(value, str) else 0


def some_ids(rows=2):
    return torch.randint(0, 96, (rows, LENGTH), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", WRITERS)
def test_a_roomy_cache_gives_the_same_bits(family):
    model = build(family).eval()
    both = (caches(model, some_ids(), roomy) for roomy in (False, True))
    for (_, plain), (_, roomy) in zip(*both, strict=True):
        assert torch.equal(plain, roomy)


def test_a_token_is_written_in_its_place():
    places = [
        {layer.keys.data_ptr() for layer in cache.layers}
        for cache, _ in caches(build("llama").eval(), some_ids(), roomy=True)
    ]
    assert len(places) == LENGTH
    assert len(places[0]) > 1
    assert all(place == places[0] for place in places)


def test_a_window_that_slides_stays_the_models_own():
    cache, _ = next(caches(build("gemma3").eval(), some_ids(), roomy=True))
    plain, _ = next(caches(build("gemma3").eval(), some_ids(), roomy=False))
    for one, other in zip(cache.layers, plain.layers, strict=True):
        assert (type(one) is type(other)) == (type(other) is not DynamicLayer)
    assert any(layer.is_sliding for layer in plain.layers)


@pytest.mark.parametrize("family", WRITERS)
@pytest.mark.parametrize("length", [2, LENGTH])
def test_what_a_window_takes_is_what_its_cache_holds_in_the_end(family, length):
    model = build(family).eval()
    *_, (cache, logits) = caches(model, some_ids(rows=1)[:, :length], roomy=False)
    kept = sum(held([getattr(layer, name, ()) for name in KEPT]) for layer in cache.layers)
    counted = window_bytes(model, length) - logits.shape[-1] * (4 + 8)
    # A layer whose window slides lets its oldest token go, and room for it is counted all the same.
    token = sum(
        (layer.keys.nbytes + layer.values.nbytes) // layer.keys.shape[-2]
        for layer in cache.layers
        if getattr(layer, "is_sliding", False)
    )
    assert kept <= counted <= kept + token


def test_a_state_of_constant_size_is_counted_once():
    config = RwkvConfig(vocab_size=96, hidden_size=32, num_hidden_layers=3, context_length=64)
    model = RwkvForCausalLM(config).eval()
    states = 5 * 32 * 3 * 4  # each of five has a number for each channel and layer, in float32
    assert window_bytes(model, 8) == window_bytes(model, 64) == states + 96 * 12


def test_a_large_model_is_measured_without_its_weights():
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=4,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    # 4 layers, key and value, 8 heads of 128, 2048 positions of two bytes; logits and two copies.
    assert window_bytes(model, 2048) == 4 * 2 * 8 * 128 * 2048 * 2 + 32_000 * (2 + 4 + 4)


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "deepseek_v3"])
def test_a_mixture_of_experts_takes_as_much_without_its_weights(family):
    model = build(family)
    expected = window_bytes(model, 64)
    assert window_bytes(model.to("meta"), 64) == expected


def test_as_many_windows_as_half_of_the_memory_holds():
    free = available_memory("cpu")  # others come and go; a batch is what an even share makes of it
    assert windows_at_once(free // 44, 100, "cpu") == 20  # five batches, of 22 that fit
    assert windows_at_once(free // 57, 100, "cpu") == 25  # four, of 28 that fit
    assert windows_at_once(free // 44, 100, "cpu", taken=free // 2) == 10
    assert windows_at_once(free // 44, 7, "cpu") == 7
    assert windows_at_once(1, 300, "cpu") == 100 < MAX_WINDOWS
    assert windows_at_once(1, 256, "cpu") == MAX_WINDOWS
    assert windows_at_once(2 * free, 9, "cpu") == windows_at_once(1, 9, "cpu", taken=2 * free) == 1


def test_a_model_without_a_memory_cannot_write():
    with pytest.raises(InputError, match="keeps what it has read; OpenAIGPTLMHeadModel does not"):
        cache_name(build("gpt"))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_model_that_keeps_what_it_has_read_to_itself_is_refused(device):
    model = build("recurrent_gemma").to(device)
    with pytest.raises(InputError, match="keeps what it has read; RecurrentGemmaForCausalLM does"):
        window_bytes(model, 8)


class Reads(TorchDispatchMode):
    """Counts values that Python asks a tensor for: on a GPU each waits for all work so far."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **kwargs or {})


def test_no_token_waits_for_the_device(tiny_llama, llama_tokenizer):
    counts = []
    for length in (20, 60):
        with Reads() as reads:
            generate_windows(tiny_llama, llama_tokenizer, 3, length, seed=0)
        counts.append(reads.count)
    assert counts[0] == counts[1] > 0
