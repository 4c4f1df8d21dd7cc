"""Tests that need the environment of `make reader-llama`, and what they ask llama.cpp."""

import json
import os
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
LLAMA_READER = ".venv-reader-llama"

needs_llama_reader = pytest.mark.skipif(
    not (REPOSITORY / LLAMA_READER / ".complete").is_file()
    and not os.environ.get("NORMTWEAK_REQUIRE_LLAMA_READER"),
    reason=f"{LLAMA_READER} is absent or not complete: run `make reader-llama`",
)
# Runs in that environment: argv is a file of questions by the path of a model, and one of answers.
ASK = """
import json, sys
from pathlib import Path
import llama_cpp

questions, answers = json.loads(Path(sys.argv[1]).read_text()), {}
for path, asked in questions.items():
    # Keys and values in float32, as transformers has them.
    model = llama_cpp.Llama(
        path, n_ctx=256, n_threads=1, logits_all=True, type_k=0, type_v=0, verbose=False
    )
    found = answers[path] = {"logits": [], "greedy": [], "ids": []}
    for text in asked.get("texts", ()):
        found["ids"].append(model.tokenize(text.encode(), add_bos=True, special=True))
    for prompt in asked["prompts"]:
        model.reset()
        model.eval(prompt)
        found["logits"].append(model.scores[: len(prompt)].tolist())
        ids = []
        for _ in range(asked["tokens"]):
            ids.append(int(model.scores[model.n_tokens - 1].argmax()))
            model.eval(ids[-1:])
        found["greedy"].append(ids)
Path(sys.argv[2]).write_text(json.dumps(answers))
"""


def ask(folder, questions):
    """Return what llama.cpp says to prompts of token ids, by the path of a GGUF file.

    Args:
        folder: Where questions and answers may be written.
        questions: By path: ``prompts`` (lists of ids), ``tokens`` to add greedily, ``texts``.
    """
    python = REPOSITORY / LLAMA_READER / "bin" / "python"
    (folder / "questions.json").write_text(json.dumps(questions))
    subprocess.run(
        [python, "-I", "-c", ASK, folder / "questions.json", folder / "answers.json"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return json.loads((folder / "answers.json").read_text())
