"""The text that reference models were trained on, from a small library in place of Python's own."""

import json

from tasks.engine.environment import state_root
from tasks.stages.training.text import training_text


def test_it_holds_every_document_that_is_not_held_out(root, tmp_path, monkeypatch):
    from normtweak_core.reference import corpus

    library = tmp_path / "library"
    library.mkdir()
    for number in range(40):
        text = f"A sentence of the docstring of module {number}. " * 8
        (library / f"m{number}.py").write_text(f'"""{text}"""\nx = {number}\n')
    monkeypatch.setattr(corpus.sysconfig, "get_path", lambda name: str(library))
    expected = [one for one in corpus.documents() if not one.held_out]
    assert 0 < len(expected) < len(corpus.documents())  # some are held out
    made = training_text.body("training-text-0")
    lines = (state_root() / made.text.path).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"text": one.text} for one in expected]
    assert sum("docstring of module" in line for line in lines) > 20
