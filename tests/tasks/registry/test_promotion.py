"""Aliases: what the gate and the present champion let through, and the moves of each."""

import json
import math
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from flows.cli import parse
from normtweak_core.errors import InputError
from tasks.registry.promotion import (
    HISTORY,
    MEASURED_ON,
    Verdict,
    earlier_version,
    history,
    move_alias,
)
from tests.children import QUICK

PASSES = Verdict(promote_to="champion")
SPREAD = np.random.default_rng(0).normal(0, 0.5, 40)  # of the windows of a text, nats


def entered(
    registry,
    seed: int,
    perplexity: float,
    size: float = 1000.0,
    text="text",
    kl: float | None = None,
    noise: float = 0.0,
    windows: int = 40,
    **changes,
):
    """Register an export of its own with these numbers; KL falls with perplexity if not given.

    Args:
        registry: Where to.
        seed: Of the export and of the noise.
        perplexity: Of the model.
        size: In bytes.
        text: What was measured on.
        kl: From the float model.
        noise: Between the windows of two versions, nats.
        windows: How many; none: kept as they were before the windows were.
        changes: Of the arguments of a registration.
    """
    kl = perplexity / 100 if kl is None else kl
    own = np.random.default_rng(seed).normal(0, noise, (2, 40))[:, :windows]
    own -= own.mean(1, keepdims=True) if windows else 0
    nll = (math.log(perplexity) + SPREAD[:windows] + own[0]).tolist()
    facts = {"measured_on": text}
    if windows:
        facts["windows"] = {"nll": nll, "kl": (kl * np.exp(SPREAD[:windows]) + own[1]).tolist()}
    folder = registry.root / f"reports-{seed}"
    folder.mkdir(exist_ok=True)
    (folder / "evaluation.json").write_text(json.dumps(facts))
    return registry.with_seed(seed).register(
        metrics={"perplexity/quantized": perplexity, "kl/mean": kl, "size_bytes": size},
        reports=[folder / "evaluation.json"],
        **{"verdict": PASSES, "tags": {MEASURED_ON: text}} | changes,
    )


def at(registry, alias: str) -> int | None:
    found = registry.client.get_registered_model(registry.name).aliases.get(alias)
    return None if found is None else int(found)


def test_what_fails_the_gate_is_registered_and_no_alias_moves(registry):
    entered(registry, 1, 12.0, verdict=Verdict(promote_to="champion", asked=True))
    failing = Verdict(("kl/mean must be at most 0.1 (gate.max_kl); found 0.3",), "champion", True)
    second = entered(registry, 2, 11.0, verdict=failing)
    assert (second.version, second.aliases, second.promotion) == (2, [], None)
    assert second.gate_failures == list(failing.failures)
    assert (at(registry, "candidate"), at(registry, "champion")) == (1, 1)
    tags = registry.client.get_model_version(registry.name, "2").tags
    assert (tags["gate"], tags["gate.reasons"]) == ("failed", failing.failures[0])
    assert registry.client.get_model_version(registry.name, "1").tags["gate"] == "passed"


def test_without_a_gate_no_version_says_that_it_has_passed_one(registry):
    entered(registry, 1, 12.0)
    tags = registry.client.get_model_version(registry.name, "1").tags
    assert (tags["gate"], tags["gate.reasons"]) == ("none", "the recipe sets no threshold")


def test_the_champion_is_who_is_shown_to_be_no_worse(registry):
    first = entered(registry, 1, 12.0)
    assert (first.aliases, first.promotion) == (
        ["candidate", "champion"],
        "champion: the first one",
    )
    worse = entered(registry, 2, 12.5)
    assert worse.aliases == ["candidate"]
    assert worse.promotion.startswith("not champion: loss +0.0408 (at most +0.0408) and KL +0.00")
    assert worse.promotion.endswith(": not shown to be no worse in loss and KL")
    better = entered(registry, 4, 11.0)
    assert better.aliases == ["candidate", "champion"]
    assert better.promotion.startswith("champion: loss -0.087 (at most -0.087) and KL -0.0")
    assert better.promotion.endswith(" nats per token against version 1 with confidence 0.95")
    assert entered(registry, 4, 11.0).promotion == "champion: already"
    assert (at(registry, "candidate"), at(registry, "champion")) == (3, 3)


def test_a_tie_keeps_the_present_champion(registry):
    entered(registry, 1, 12.0)
    equal = entered(registry, 2, 12.0)
    assert equal.promotion.endswith(" with confidence 0.95: equal, which keeps the champion")
    # Perplexity 10.346 against 10.361 with this much noise is a coin that was thrown.
    entered(registry, 3, 10.361, kl=0.01, noise=0.02)
    assert at(registry, "champion") == 3
    lucky = entered(registry, 4, 10.346, kl=0.01, noise=0.02)
    assert lucky.promotion.endswith(": not shown to be no worse in loss and KL")
    assert at(registry, "champion") == 3


@pytest.mark.parametrize(
    ("perplexity", "kl", "worse"), [(11.0, 0.13, "KL"), (12.1, 0.05, "loss"), (11.0, 0.12, None)]
)
def test_both_the_loss_and_the_divergence_must_be_no_worse(registry, perplexity, kl, worse):
    entered(registry, 1, 12.0, kl=0.12)
    found = entered(registry, 2, perplexity, kl=kl)
    assert ("champion" in found.aliases) is (worse is None)
    assert found.promotion.endswith(f"no worse in {worse}" if worse else "confidence 0.95")


def test_the_confidence_of_the_gate_decides(registry):
    entered(registry, 1, 12.0, kl=0.12, noise=0.02)
    # Behind 0.1 % of loss and 0.004 of KL stand noises of 0.028 on 40 windows: one error is 0.0045.
    near = {"perplexity": 11.93, "kl": 0.113, "noise": 0.02}
    for number, confidence in enumerate((0.99, 0.8)):
        verdict = Verdict(promote_to="champion", confidence=confidence)
        found = entered(registry, 2, **near, verdict=verdict)
        assert ("champion" in found.aliases) is (number == 1), found.promotion
        assert f"with confidence {confidence:g}" in found.promotion


def test_a_smaller_version_that_is_worse_is_promoted_by_hand_alone(registry):
    entered(registry, 1, 12.0)
    small = entered(registry, 2, 12.5, size=600.0)
    assert small.promotion.endswith("; smaller (600 < 1000 bytes): promote it by hand")


def test_what_cannot_be_compared_does_not_win(registry):
    entered(registry, 1, 12.0)
    larger = entered(registry, 2, 11.0, size=1020.0)
    assert larger.promotion == "not champion: larger than version 1 (1020 > 1000 bytes)"
    elsewhere = entered(registry, 3, 11.0, text="another text")
    assert elsewhere.promotion == (
        "not champion: version 1 was evaluated on something else; promote it by hand"
    )
    tags = {MEASURED_ON: "text", "source_sha256": "of another"}
    assert entered(registry, 4, 11.0, tags=tags).promotion == (
        "not champion: version 1 was made from another model; promote it by hand"
    )
    unlike = entered(registry, 5, 11.0, windows=39)
    assert unlike.promotion == (
        "not champion: its windows are not those of version 1, or not numbers"
    )
    assert at(registry, "champion") == 1


def test_a_version_whose_numbers_are_none_is_no_champion_not_even_the_first(registry):
    nan = "not champion: its perplexity or divergence is not a finite number"
    assert entered(registry, 1, float("nan")).promotion == nan
    assert entered(registry, 2, 11.0, kl=float("inf")).promotion == nan
    assert at(registry, "champion") is None
    move_alias(registry.client, registry.name, "champion", 1, "promote")  # by hand, or long ago
    assert entered(registry, 3, 13.0).promotion == (
        "champion: the perplexity or divergence of version 1 is not a finite number"
    )


def test_a_handful_of_windows_makes_no_champion(registry):
    entered(registry, 1, 12.0, windows=4)
    few = entered(registry, 2, 6.0, windows=4)
    assert few.promotion == (
        "not champion: 4 windows show nothing, 5 are needed to compare it with version 1"
    )


def test_a_champion_from_before_the_windows_were_kept_stays_until_its_recipe_is_run_again(registry):
    entered(registry, 1, 12.0, windows=0)
    assert entered(registry, 2, 11.0).promotion == (
        "not champion: version 1 keeps no losses by window, which are compared; carry out its "
        "recipe again, which stores them, or promote it by hand"
    )
    entered(registry, 1, 12.0)
    assert entered(registry, 2, 11.0).promotion.startswith("champion: loss -0.087")


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
        "flows.commands.registry._registry", lambda: (registry.uri, registry.root / "locks")
    )
    return registry


@pytest.fixture
def told(by_hand, capsys):
    """Carries out a command, and returns what it says."""

    def command(*words) -> str:
        options = parse(list(words))
        options.run(options)
        return capsys.readouterr().out.strip()

    return command


def test_rollbacks_go_back_step_by_step_and_a_promotion_forward(by_hand, told):
    assert moves(by_hand) == [(1, "gate"), (2, "gate"), (3, "gate")]
    name = by_hand.name
    assert told("rollback", name) == f"{name} @champion: version 3 -> version 2"
    assert told("rollback", name) == f"{name} @champion: version 2 -> version 1"
    with pytest.raises(InputError, match="it is at version 1, its first: choose one with"):
        told("rollback", name)
    assert told("promote", f"models:/{name}/3") == f"{name} @champion: version 1 -> version 3"
    assert moves(by_hand)[3:] == [(2, "rollback"), (1, "rollback"), (3, "promote")]
    assert earlier_version(by_hand.client, name, "champion") == 1
    staged = told("promote", f"models:/{name}/2", "--alias", "staging")
    assert staged == f"{name} @staging: version 2"


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
    ("line", "text"),
    [
        ("promote models:/{}", "a registered version is written models:/NAME/VERSION, such as"),
        ("promote models:/{}@champion", "a registered version is written models:/NAME/VERSION, s"),
        ("promote models:/{}/99", "must be in the registry; it is"),
        ("promote models:/{}/1 --alias latest", "--alias must be letters, .*: choose"),
        ("promote models:/a+b/1 --alias x", "^NAME must be letters"),
        ("rollback nobody", "nobody must be a registered model"),
        ("rollback {} --alias unset", "@unset pointed to before; it is not set"),
    ],
)
def test_wrong_moves_are_refused(by_hand, told, line, text):
    with pytest.raises(InputError, match=text):
        told(*line.format(by_hand.name).split())


# Many at once

CHILD = """
import json, math, os, sys
from pathlib import Path
from tasks.registry.promotion import MEASURED_ON, Verdict
from tasks.registry.versions import register_export

for one in json.loads(sys.argv[1]):
    perplexity = one.pop("perplexity")
    nll = [math.log(perplexity) + window / 10 for window in range(8)]
    facts = {"measured_on": "text", "windows": {"nll": nll, "kl": nll}}
    report = Path(one["lock_dir"]).parent / f"{perplexity}-{os.getpid()}" / "evaluation.json"
    report.parent.mkdir(exist_ok=True)
    report.write_text(json.dumps(facts))
    one["reports"] = [report]
    for key in ("export_dir", "artifact_root", "lock_dir"):
        one[key] = Path(one[key])
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
            [sys.executable, "-c", QUICK + CHILD, json.dumps(order, default=str)],
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
