"""Aliases: what the gate and the present champion let through, and the moves of each."""

import json
import subprocess
import sys
from collections import Counter

import pytest

from flows.promoting import promote, rollback
from normtweak_core.errors import InputError
from tasks.promotion import HISTORY, MEASURED_ON, Verdict, earlier_version, history, move_alias

PASSES = Verdict(promote_to="champion")


def entered(registry, seed: int, perplexity: float, size: float = 1000.0, text="text", **changes):
    """Register an export of its own with these numbers."""
    return registry.with_seed(seed).register(
        metrics={"perplexity/quantized": perplexity, "size_bytes": size},
        tags={MEASURED_ON: text},
        **{"verdict": PASSES} | changes,
    )


def at(registry, alias: str) -> int | None:
    found = registry.client.get_registered_model(registry.name).aliases.get(alias)
    return None if found is None else int(found)


def test_what_fails_the_gate_is_registered_and_no_alias_moves(registry):
    entered(registry, 1, 12.0)
    failing = Verdict(("kl/mean must be at most 0.1 (gate.max_kl); found 0.3",), "champion")
    second = entered(registry, 2, 11.0, verdict=failing)
    assert (second.version, second.aliases, second.promotion) == (2, [], None)
    assert second.gate_failures == list(failing.failures)
    assert (at(registry, "candidate"), at(registry, "champion")) == (1, 1)
    tags = registry.client.get_model_version(registry.name, "2").tags
    assert (tags["gate"], tags["gate.reasons"]) == ("failed", failing.failures[0])
    assert registry.client.get_model_version(registry.name, "1").tags["gate"] == "passed"


def test_the_champion_is_who_is_not_worse(registry):
    first = entered(registry, 1, 12.0)
    assert (first.aliases, first.promotion) == (
        ["candidate", "champion"],
        "champion: the first one",
    )
    worse = entered(registry, 2, 12.5)
    assert worse.aliases == ["candidate"]
    assert worse.promotion == "not champion: perplexity 12.5, version 1 has 12"
    equal = entered(registry, 3, 12.0)
    assert equal.promotion == "champion: perplexity 12, version 1 had 12"
    better = entered(registry, 4, 11.0)
    assert better.aliases == ["candidate", "champion"]
    assert entered(registry, 4, 11.0).promotion == "champion: already"
    assert (at(registry, "candidate"), at(registry, "champion")) == (4, 4)


def test_what_cannot_be_compared_does_not_win(registry):
    entered(registry, 1, 12.0)
    larger = entered(registry, 2, 11.0, size=1020.0)
    assert larger.promotion == "not champion: larger than version 1 (1020 > 1000 bytes)"
    elsewhere = entered(registry, 3, 11.0, text="another text")
    assert elsewhere.promotion == (
        "not champion: version 1 was evaluated on something else; promote it by hand"
    )
    assert entered(registry, 4, float("nan")).aliases == ["candidate"]
    assert at(registry, "champion") == 1


def test_without_an_alias_to_earn_only_the_candidate_moves(registry):
    assert entered(registry, 1, 12.0, verdict=Verdict()).aliases == ["candidate"]


# Moves


def moves(registry, alias="champion") -> list[tuple[int, str]]:
    found = history(registry.client, registry.name, alias)
    return [(move["version"], move["by"]) for move in found]


@pytest.fixture
def by_hand(registry, monkeypatch):
    """Three champions in a row, and the commands on this registry."""
    for seed, perplexity in ((1, 12.0), (2, 11.0), (3, 10.0)):
        entered(registry, seed, perplexity)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    monkeypatch.setattr(
        "flows.promoting._registry", lambda: (registry.client, registry.root / "locks")
    )
    return registry


def test_rollbacks_go_back_step_by_step_and_a_promotion_forward(by_hand):
    assert moves(by_hand) == [(1, "gate"), (2, "gate"), (3, "gate")]
    name = by_hand.name
    assert rollback(name, "champion") == f"{name} @champion: version 3 -> version 2"
    assert rollback(name, "champion") == f"{name} @champion: version 2 -> version 1"
    with pytest.raises(InputError, match="it is at version 1, its first: choose one with"):
        rollback(name, "champion")
    assert promote(f"models:/{name}/3", "champion") == f"{name} @champion: version 1 -> version 3"
    assert moves(by_hand)[3:] == [(2, "rollback"), (1, "rollback"), (3, "promote")]
    assert earlier_version(by_hand.client, name, "champion") == 1
    assert promote(f"models:/{name}/2", "staging") == f"{name} @staging: version 2"


def test_a_move_that_was_not_written_down_is_written_down_by_the_next(by_hand, monkeypatch):
    client, name = by_hand.client, by_hand.name

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(client), "set_registered_model_tag", killed)
        with pytest.raises(KeyboardInterrupt):
            move_alias(client, name, "champion", 1, "promote")
    assert at(by_hand, "champion") == 1  # moved, whole, and not yet written down
    assert moves(by_hand)[-1] == (3, "gate")
    assert move_alias(client, name, "champion", 1, "promote") is False
    assert moves(by_hand)[-1] == (1, "unknown")
    assert earlier_version(client, name, "champion") == 3


def test_the_tag_keeps_the_newest_moves(by_hand):
    for number in range(60):
        move_alias(by_hand.client, by_hand.name, "champion", 1 + number % 2, "promote")
    text = by_hand.client.get_registered_model(by_hand.name).tags[f"{HISTORY}champion"]
    assert len(json.loads(text)) == 40
    assert len(text) < 5000
    assert moves(by_hand)[-1] == (2, "promote")


@pytest.mark.parametrize(
    ("act", "text"),
    [
        (
            lambda name: promote(f"models:/{name}", "champion"),
            "takes a version as models:/NAME/VER",
        ),
        (lambda name: promote(f"models:/{name}/99", "champion"), "must be in the registry; it is"),
        (
            lambda name: promote(f"models:/{name}/1", "latest"),
            "--alias must be letters, .*: choose",
        ),
        (lambda name: promote("models:/a b/1", "x"), "a registered model name is letters"),
        (lambda name: rollback("nobody", "champion"), "nobody must be a registered model"),
        (lambda name: rollback(name, "unset"), "@unset pointed to before; it is not set"),
    ],
)
def test_wrong_moves_are_refused(by_hand, act, text):
    with pytest.raises(InputError, match=text):
        act(by_hand.name)


# Many at once

CHILD = """
import json, sys
from pathlib import Path
from tasks.promotion import MEASURED_ON, Verdict
from tasks.registry import register_export

for one in json.loads(sys.argv[1]):
    perplexity = one.pop("perplexity")
    for key in ("export_dir", "artifact_root", "lock_dir"):
        one[key] = Path(one[key])
    one["reports"] = [Path(report) for report in one["reports"]]
    register_export(**one | {
        "metrics": {"perplexity/quantized": perplexity, "size_bytes": 1000.0},
        "tags": {MEASURED_ON: "text"},
        "verdict": Verdict(promote_to="champion"),
    })
"""
PERPLEXITIES = {1: 12.0, 2: 10.0, 3: 11.0, 4: 13.0, 5: 10.5}


def test_twenty_registrations_of_five_contents_make_five_versions_and_one_champion(registry):
    contents = []
    for seed, perplexity in PERPLEXITIES.items():
        arguments = registry.with_seed(seed).arguments()
        arguments["reports"] = [str(report) for report in arguments["reports"]]
        contents.append(arguments | {"perplexity": perplexity})
    orders = [contents, contents[::-1], contents[2:] + contents[:2], contents[3:] + contents[:3]]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, json.dumps(order, default=str)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for order in orders
    ]
    for process in running:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error[-2000:]
    versions = {int(v.version): v for v in registry.versions()}
    assert sorted(versions) == [1, 2, 3, 4, 5]
    contents_of = Counter(v.tags["export_sha256"] for v in versions.values())
    assert set(contents_of.values()) == {1}
    champion = versions[at(registry, "champion")]
    assert float(champion.tags["perplexity/quantized"]) == min(PERPLEXITIES.values())
    assert at(registry, "candidate") in versions
    # No orphan: each logged model is ready and belongs to a version, each run is finished.
    models = registry.logged_models()
    assert {m.model_id for m in models} == {v.tags["logged_model_id"] for v in versions.values()}
    assert {m.status.name for m in models} == {"READY"}
    assert len(moves(registry)) <= 5
