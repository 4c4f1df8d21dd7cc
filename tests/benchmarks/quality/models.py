"""The models that defaults are chosen on: the reference models, a third one, and stories260K.

The third has another shape. It is trained once, in minutes, on the text of the Python
installation, and kept with the runs of the study.
"""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from normtweak_core.model.source import reference_folder
from normtweak_core.reference.architectures import CONTEXT, VOCABULARY, train_tokenizer
from normtweak_core.reference.corpus import documents
from normtweak_core.reference.train import (
    STATE_FILE,
    TrainingPlan,
    encode_stream,
    run_training,
)

THIRD = Qwen3Config(
    vocab_size=VOCABULARY,
    max_position_embeddings=CONTEXT,
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    bos_token_id=0,
    eos_token_id=0,
)
PLAN = TrainingPlan(steps=500, batch=8, warmup=50)


def study_models(work: Path, stories: Path | None) -> dict[str, Path]:
    """Return the folder of each model by its name.

    Args:
        work: Where the third model is trained and kept.
        stories: Folder of stories260K; None: without it.
    """
    folders = {name: reference_folder(name) for name in ("llama", "neox")}
    folders["qwen3"] = _trained(work / "qwen3")
    return folders | ({} if stories is None else {"stories260K": stories})


def _trained(folder: Path) -> Path:
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    texts = [document for document in documents() if not document.held_out]
    tokenizer = train_tokenizer([document.text for document in texts], "llama")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(THIRD, dtype=torch.float32)
    run_training(model, encode_stream(texts, tokenizer), PLAN, folder / STATE_FILE)
    tokenizer.save_pretrained(folder)
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / STATE_FILE).unlink()
    return folder
