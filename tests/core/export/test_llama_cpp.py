"""llama.cpp opens our GGUF files and says what transformers says of the folder beside them.

Its kernels round what a linear reads to 8 bits, in blocks of 32 or, for types of 256, of 256
numbers. What the same rounding, made with torch, does to the logits is the bound: llama.cpp may be
twice as far from the model that rounds nothing, since where two sums differ in their last bit other
numbers are rounded the other way. Of its greedy tokens each is the model's own first choice after
the same words, or one that is behind it by less than that moves two logits.
"""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config
from transformers.pytorch_utils import Conv1D

from normtweak_core import reference
from normtweak_core.export.config import ExportConfig
from normtweak_core.export.gguf.containers import CONTAINERS
from normtweak_core.export.writer import write_export
from normtweak_core.model.tokenizer import load_tokenizer
from normtweak_core.model.tokenizer_files import tokenizer_files
from tests.llama_reader import ask, needs_llama_reader
from tests.tiny_exports import quantize_all, save_tiny_model

MODELS = Path(reference.__file__).parent / "models"
CASES = {
    "llama 4 bits": ("llama", 4, 32, True, "Q4_0"),
    "llama 8 bits": ("llama", 8, 32, True, "Q8_0"),
    "llama 2 bits": ("llama", 2, 256, False, "Q2_K"),
    "llama 3 bits": ("llama", 3, 256, True, "Q3_K"),
    "llama 4 bits, zeros": ("llama", 4, 64, False, "Q5_0"),
    "llama 4 bits, rows": ("llama", 4, None, False, "Q4_K"),
    "neox 4 bits": ("neox", 4, 32, True, "Q4_0"),
    "gpt2 4 bits": ("gpt2", 4, 32, True, "Q4_0"),  # untrained
}
TEXTS = [
    "import os\n", "def main(", "class Popen:\n    def __init__(self", "    if self.",
    "for i in range(", "# The", "try:\n    ", "return None\n\n\n",
]  # fmt: skip
TOKENS = 16

pytestmark = needs_llama_reader


def save_gpt2(folder):
    """A random GPT-2 with the tokenizer of the reference Llama."""
    tokenizer = load_tokenizer(MODELS / "llama")
    sizes = {"n_positions": 256, "n_embd": 64, "n_layer": 2, "n_head": 4}
    config = GPT2Config(vocab_size=len(tokenizer), **sizes, bos_token_id=0, eos_token_id=0)
    save_tiny_model(folder, config, tokenizer=False)
    for file in tokenizer_files(MODELS / "llama"):
        shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    root = tmp_path_factory.mktemp("exports")
    made, gpt2 = {}, save_gpt2(root / "gpt2")
    for name, (model, bits, group_size, symmetric, kind) in CASES.items():
        source = gpt2 if model == "gpt2" else MODELS / model
        layers = quantize_all(source, bits, group_size, symmetric)
        out = root / name.replace(" ", "-").replace(",", "")
        record = write_export(out, source, layers, {}, ExportConfig(format="gguf"))
        assert record.consumers["llama.cpp"]["type"] == kind
        made[name] = out, out / record.consumers["llama.cpp"]["file"]
    return made


@pytest.fixture(scope="module")
def answers(tmp_path_factory, exports):
    """What llama.cpp says: one process opens all files."""
    questions = {}
    for out, path in exports.values():
        prompts = load_tokenizer(out)(TEXTS)["input_ids"]
        questions[str(path)] = {"prompts": prompts, "tokens": TOKENS, "texts": TEXTS}
    found = ask(tmp_path_factory.mktemp("answers"), questions)
    return {name: found[str(path)] for name, (_, path) in exports.items()}


def rounded(x, size):
    """Activations as llama.cpp rounds them: 8 bits, a scale for each block."""
    blocks = x.unflatten(-1, (-1, size))
    step = blocks.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    return ((blocks / step).round() * step).flatten(-2)


def logits_of(model, prompts):
    with torch.inference_mode():
        return [model(torch.tensor([ids])).logits[0] for ids in prompts]


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_says_the_same_words_and_its_logits_keep_the_bound(exports, answers, case):
    out, path = exports[case]
    tokenizer = load_tokenizer(out)
    prompts = tokenizer(TEXTS)["input_ids"]
    assert answers[case]["ids"] == prompts
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    said = [ids + more for ids, more in zip(prompts, answers[case]["greedy"], strict=True)]
    exact = logits_of(model, said)
    size = CONTAINERS[path.stem.removeprefix("model-")].block
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and any(
            p.isdigit() for p in name.split(".")
        ):
            module.register_forward_pre_hook(lambda _, args: (rounded(args[0], size), *args[1:]))
    bound = 2 * distance(logits_of(model, said), exact)
    read = [logits[: len(ids)] for logits, ids in zip(exact, prompts, strict=True)]
    found = distance([torch.tensor(one) for one in answers[case]["logits"]], read)
    assert 0 < found < bound < 0.3
    largest = max(float(one.abs().max()) for one in exact)
    same = 0
    for logits, prompt, ids in zip(exact, prompts, said, strict=True):
        before = logits[len(prompt) - 1 : -1]
        chosen = before.gather(1, torch.tensor(ids[len(prompt) :])[:, None])[:, 0]
        behind = before.amax(1) - chosen
        # What rounding moves may take the other of two tokens that are as good as each other.
        assert float(behind.max()) <= 2 * bound * largest
        same += int((behind == 0).sum())
    assert same >= 0.9 * TOKENS * len(TEXTS)


def distance(found, wanted):
    """Largest difference of logits, as a share of the largest logit."""
    largest = max(float(one.abs().max()) for one in wanted)
    pairs = zip(found, wanted, strict=True)
    return max(float((one - other).abs().max()) for one, other in pairs) / largest
