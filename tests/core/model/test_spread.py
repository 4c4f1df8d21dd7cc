import copy
import gc
import logging
import weakref

import pytest
import torch
from families import left_padding, save, tokens
from transformers import AutoModelForCausalLM

from normtweak_core import memory, on_demand, spread
from normtweak_core.calibration.cache import cache_name, make_room
from normtweak_core.model.structure import find_blocks
from normtweak_core.on_demand import num_bytes
from normtweak_core.spread import SpreadModel, model_bytes, whole_or_spread


def from_pretrained(folder, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval().requires_grad_(False)


def rooms_for(folder, blocks, elsewhere=0):
    """Room for so many blocks on the first device, beside the rest, and on a second one."""
    model = from_pretrained(folder)
    inside = find_blocks(model).modules
    rest = num_bytes(model) - sum(map(num_bytes, inside))
    most = max(map(num_bytes, inside))
    return {"cpu": rest + blocks * most, "cpu:0": elsewhere * most}


def written(model, ids):
    """Logits of each token in turn, with what the model keeps of those before."""
    name, cache, logits = cache_name(model), None, []
    with torch.no_grad():
        for place in range(ids.shape[1]):
            out = model(input_ids=ids[:, place, None], use_cache=True, **{name: cache})
            if cache is None:
                make_room(out[name], ids.shape[1])
            cache = out[name]
            logits.append(out.logits)
    return torch.cat(logits, dim=1)


# Of each way to call blocks and to keep what was read one.
KINDS = ["llama", "gemma3", "gpt2", "bloom", "falcon_alibi", "lfm2", "mamba", "falcon_h1"]
KINDS += ["qwen2_moe", "mixtral"]


@pytest.mark.parametrize("family", KINDS)
def test_a_spread_model_gives_the_numbers_of_one_in_memory(family, tmp_path):
    folder = save(family, tmp_path)
    # A copy: the sums of experts depend on where in its file a float32 weight begins.
    model = copy.deepcopy(from_pretrained(folder))
    found = SpreadModel(folder, torch.float32, rooms_for(folder, 1, 1)).whole
    inputs = {"input_ids": tokens(), "attention_mask": left_padding(tokens())}
    with torch.no_grad():
        wanted = model(**inputs, use_cache=False, output_hidden_states=True)
        out = found(**inputs, use_cache=False, output_hidden_states=True)
    assert torch.equal(out.logits, wanted.logits)
    assert len(out.hidden_states) == len(wanted.hidden_states)
    assert all(map(torch.equal, out.hidden_states, wanted.hidden_states))
    assert torch.equal(written(found, tokens()), written(model, tokens()))


def test_as_many_blocks_stay_as_there_is_room_for(tmp_path, caplog):
    folder = save("llama", tmp_path)
    caplog.set_level(logging.INFO)
    for here, there in ((0, 0), (2, 0), (1, 1), (3, 0)):
        found = SpreadModel(folder, torch.float32, rooms_for(folder, here, there))
        found.whole(input_ids=tokens())
        kept = here + there
        assert f"{kept} of its 3 blocks stay in memory, and {3 - kept} are read" in caplog.text
        assert sorted(found._kept) == list(range(kept))
        caplog.clear()


def test_embedding_and_head_are_read_when_they_run_where_they_have_no_room(tmp_path, monkeypatch):
    monkeypatch.setattr(on_demand, "KEPT_WEIGHT", 0)
    folder = save("gpt_neox", tmp_path)
    wanted = from_pretrained(folder)(input_ids=tokens()).logits
    for bytes_, is_read in ((0, True), (1 << 30, False)):
        model = SpreadModel(folder, torch.float32, {"cpu": bytes_}).whole
        assert torch.equal(model(input_ids=tokens()).logits, wanted)
        for end in (model.get_input_embeddings(), model.get_output_embeddings()):
            assert end.weight.is_meta is is_read
        assert model.device == torch.device("cpu")
        assert model.to("cpu") is model


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_a_model_is_spread_where_it_does_not_fit_beside_what_else_is_to_be_held(
    family, tmp_path, monkeypatch
):
    folder = save(family, tmp_path)
    size = model_bytes(folder, torch.float32)
    for module in (memory, spread):
        monkeypatch.setattr(module, "available_memory", lambda device: int(size / memory.WHOLE) + 1)
    assert next(whole_or_spread(folder, torch.float32, "cpu").parameters()).device.type == "cpu"
    model = whole_or_spread(folder, torch.float32, "cpu", beside=2)
    assert any(one.is_meta for one in model.parameters())
    wanted = from_pretrained(folder)(input_ids=tokens()).logits
    assert torch.equal(model(input_ids=tokens()).logits, wanted)
    half = whole_or_spread(folder, torch.bfloat16, "cpu", beside=2)
    assert not any(one.is_meta for one in half.parameters())


def test_a_limit_spreads_a_model(tmp_path):
    folder = save("llama", tmp_path)
    with memory.limited(1):
        model = whole_or_spread(folder, torch.float32, "cpu")
        assert any(one.is_meta for one in model.parameters())
    held = weakref.ref(model)
    del model
    gc.collect()
    assert held() is None
