"""A pipeline follows its declaration: what runs, in which order, what is made again, the plan.

Small stages that add numbers stand for long ones; the real pipelines are looked at as declared.
"""

import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows.drawing import with_stages
from flows.pipeline.declared import Finished, Pipeline
from tasks.engine.artifacts import Result
from tasks.engine.stage import Stage, stage
from tasks.stages.score import scores
from tests.flows.declared import PIPELINES, STAGES
from tests.flows.stage_bodies import Bodies

REPOSITORY = Path(__file__).parents[2]


class Number(Result, frozen=True):
    value: int


def adding(name: str, *needs: str, **declared) -> Stage:
    """A stage whose result is one more than the sum of all that it needs."""

    @stage(name, needs=needs, reads=lambda work, found, part: {"part": part}, **declared)
    def body(found, before, **_):
        return Number(value=1)

    return body


def visited(order: list):
    """Return a visitor that notes which parts were visited; a result sums what it is made from."""

    def visit(one: Stage, work, found) -> list:
        results: list[Number] = []
        for part in one.parts(work):
            order.append(one.label_of(work, part))
            needed = [found[name] for name in one.needs if name in found]
            flat = [n for r in needed for n in (r if isinstance(r, list) else [r])]
            before = results[-1].value if one.chained and results else 0
            results.append(Number(value=1 + before + sum(n.value for n in flat)))
        return results

    return visit


WORK = SimpleNamespace(
    tune=True, blocks=3, shared={"dtype": "float32"}, device="cpu", threads=1, modules=set()
)
CHAIN = Pipeline(
    "chain",
    (
        adding("text"),
        adding(
            "block", "text", chained=True, parts=lambda work: range(work.blocks),
            label=lambda work, part: f"block {part}",
        ),
        adding("tune", "block", when=lambda work: work.tune),
        adding("export", "block", "tune"),
        adding("measure", "export"),
    ),
)  # fmt: skip


def test_results_are_found_by_the_name_of_their_stage_and_parts_are_a_list():
    order: list[str] = []
    found = CHAIN.walk(WORK, visited(order))
    assert order == ["text", "block 0", "block 1", "block 2", "tune", "export", "measure"]
    assert [one.value for one in found["block"]] == [2, 4, 6]
    assert found["tune"].value == 13
    assert found["export"].value == 1 + 12 + 13


def test_a_stage_that_is_switched_off_is_needed_by_none():
    work = SimpleNamespace(**{**vars(WORK), "tune": False})
    found = CHAIN.walk(work, visited([]))
    assert "tune" not in found
    assert found["export"].value == 13


def test_up_to_a_stage_comes_what_it_is_made_from_and_nothing_else():
    def names(*upto: str) -> list[str]:
        return [one.name for one in CHAIN.upto(*upto).stages]

    assert names("tune") == ["text", "block", "tune"]
    assert names("text") == ["text"]
    assert names("export") == ["text", "block", "tune", "export"]


def test_what_an_input_is_missing_for_is_not_visited():
    order: list[str] = []
    pipeline = Pipeline("p", (adding("text"), adding("train", "text", "start"), adding("own")))
    assert set(pipeline.walk(WORK, visited(order))) == {"text", "own"}
    given = pipeline.walk(WORK, visited([]), {"start": Number(value=5)})
    assert given["train"].value == 7


def test_what_is_asked_for_again_is_made_again_with_all_that_it_leads_to():
    def again(work, found) -> dict:
        return {"type": Number(value=10)} if found["type"].value == 1 else {}

    pipeline = Pipeline(
        "p",
        (
            adding("text"),
            adding("type"),
            adding("long", "text"),
            adding("block", "type"),
            adding("export", "block", "long", again=again),
        ),
    )
    order: list[str] = []
    found = pipeline.walk(WORK, visited(order))
    assert order == ["text", "type", "long", "block", "export", "block", "export"]
    assert (found["block"].value, found["export"].value) == (11, 1 + 11 + 2)


def test_a_plan_ends_where_a_part_is_missing(monkeypatch):
    there: dict[str, Number] = {}
    monkeypatch.setattr("flows.pipeline.declared.cached_result", there.get)

    def told() -> list[str]:
        return [str(one) for one in CHAIN.finished(WORK)]

    nothing = ["text: will run", "block: 0 of 3 cached", "tune: will run", "export: will run"]
    assert told() == [*nothing, "measure: will run"]

    def keep(one: Stage, work, found) -> list:
        results: list[Number] = []
        for part in one.parts(work):
            key = one.key(work, found, part, results[-1] if one.chained and results else None)
            results.append(there.setdefault(key, Number(value=len(there))))
        return results

    CHAIN.walk(WORK, keep)
    whole = ["text: cached", "block: 3 of 3 cached", "tune: cached", "export: cached"]
    assert told() == [*whole, "measure: cached"]
    del there[next(key for key in list(there) if there[key].value == 2)]  # block 1
    assert told()[:3] == ["text: cached", "block: 1 of 3 cached", "tune: will run"]


def test_stages_of_one_heading_are_counted_together_where_the_last_of_them_is(monkeypatch):
    monkeypatch.setattr("flows.pipeline.declared.cached_result", lambda key: None)
    pipeline = Pipeline(
        "p", (adding("a", title="measure"), adding("b"), adding("c", title="measure"))
    )
    assert pipeline.finished(WORK) == [Finished("b", 0, 1), Finished("measure", 0, 2)]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((adding("a"), adding("a")), "p must have each stage once; found a twice"),
        ((adding("a", "b"), adding("b")), "a must come behind b in p"),
    ],
)
def test_an_order_that_cannot_be_is_refused(stages, message):
    with pytest.raises(ValueError, match=message):
        Pipeline("p", stages)


def test_a_key_holds_name_parents_reads_part_before_and_what_the_job_shares():
    block = CHAIN.stages[1]
    found = {"text": Number(value=1)}
    keys = [
        block.key(WORK, found, 0),
        block.key(WORK, found, 1, Number(value=1)),
        block.key(WORK, found, 1, Number(value=2)),
        block.key(WORK, {"text": Number(value=2)}, 0),
        block.but(kind="other").key(WORK, found, 0),
        block.but(shared=False).key(WORK, found, 0),
        block.key(SimpleNamespace(**{**vars(WORK), "device": "cuda:0"}), found, 0),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == block.key(WORK, found, 0)


@pytest.mark.parametrize("one", STAGES, ids=lambda one: f"{one.kind} {one.name}")
def test_the_body_of_a_declared_stage_asks_for_what_there_is(one):
    found = {name: name for name in one.needs}
    arguments = one.arguments(
        found, key="k", work=None, part=None, label="l", before=[], shared=None
    )
    assert set(arguments) <= {
        "key", "work", "part", "label", "before", "shared", "found",
        *(name.replace(" ", "_") for name in one.needs),
    }  # fmt: skip


@pytest.mark.parametrize("pipeline", PIPELINES, ids=lambda one: one.name)
def test_what_a_declared_stage_needs_is_a_stage_before_it_or_an_input(pipeline):
    names: list[str] = []
    for one in pipeline.stages:
        assert set(one.needs) <= {*names, "start"}
        names.append(one.name)


def test_the_page_on_the_architecture_draws_the_stages_as_they_are_declared():
    page = (REPOSITORY / "docs" / "architecture.md").read_text()
    assert with_stages(page) == page, "run `make docs`"
    assert "s4[[block]]" in page
    assert "s3 --> s4" in page  # from the float type


def test_a_model_is_opened_once_for_all_its_tasks(monkeypatch):
    scored: list[object] = []
    monkeypatch.setattr(
        "tasks.stages.score._score",
        lambda key, work, items, label, subject: scored.append(subject) or Number(value=1),
    )

    def model(work, found) -> SimpleNamespace:
        return SimpleNamespace(identity={"model": "a"})

    items = [SimpleNamespace(task=name, inputs=lambda name=name: {"task": name}) for name in "ab"]
    work = SimpleNamespace(**{**vars(WORK), "items": items})
    Pipeline("p", (scores("measure", model),)).walk(work, Bodies().visit)
    assert len(scored) == 2
    assert scored[0] is scored[1]


def test_of_several_models_one_is_in_memory_at_a_time(monkeypatch):
    alive: weakref.WeakSet = weakref.WeakSet()
    opened: list[str] = []

    class Model:
        pass

    def subject(name) -> SimpleNamespace:
        def whole() -> Model:
            assert not alive
            opened.append(name)
            alive.add(model := Model())
            return model

        return SimpleNamespace(identity={"model": name}, whole=whole)

    subjects = {name: subject(name) for name in "pq"}
    monkeypatch.setattr(
        "tasks.stages.score._score",
        lambda key, work, items, label, shared: (shared.model, Number(value=1))[1],
    )
    items = [SimpleNamespace(task=name, inputs=lambda name=name: {"task": name}) for name in "ab"]
    work = SimpleNamespace(**{**vars(WORK), "items": items})
    stages = (scores(name, lambda work, found, one=one: one) for name, one in subjects.items())
    Pipeline("p", tuple(stages)).walk(work, Bodies().visit)
    assert opened == ["p", "q"]
    assert not alive
