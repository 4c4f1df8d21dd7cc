"""What the bench of other tools makes of its runs."""

import argparse
import json

import pytest
import torch

from tests.benchmarks.peers.__main__ import TOOLS, planned
from tests.benchmarks.peers.cases import quantized_share
from tests.benchmarks.peers.summary import MEBI, write_summary


def options(**changes):
    asked = {"parts": ["quality", "cost"], "tools": list(TOOLS), "cases": None, "settings": None}
    return argparse.Namespace(**asked | {"repeats": 3} | changes)


def cost(tool, setting, blocks, repeat, **found):
    told = {"part": "cost", "model": f"random-{blocks}", "bits": 4, "group_size": 128}
    return told | {"tool": tool, "setting": setting, "repeat": repeat} | found


def measured(cpu, wall, mebi):
    return {"cpu_seconds": cpu, "seconds": wall, "above_start_bytes": mebi * MEBI}


def test_every_run_has_a_file_of_its_own_and_repetitions_go_round():
    runs = planned(options())
    assert len({run.file for run in runs}) == len(runs)
    tools = [(run.tool, run.setting) for run in runs if run.part == "cost"]
    once = len(tools) // 3
    assert tools == tools[:once] * 3
    assert {tool for tool, _ in tools[:once]} == set(TOOLS)
    assert all(run.repeat == 0 for run in runs if run.part == "quality")


def test_a_part_of_the_runs_can_be_asked_for():
    runs = planned(options(cases=["llama-w4g64"], tools=["gptqmodel"], settings=["GPTQ"]))
    assert [run.file.name for run in runs] == ["quality-llama-w4g64-gptqmodel-GPTQ-0.json"]


@pytest.fixture
def page(tmp_path):
    told = {"part": "quality", "model": "llama", "bits": 4, "group_size": 64, "repeat": 0}
    runs = [
        cost("llm-compressor", "GPTQ", 2, 0, **measured(50, 60, 400)),
        cost("llm-compressor", "GPTQ", 6, 0, **measured(130, 150, 700)),
        cost("llm-compressor", "GPTQ", 2, 1, **measured(40, 60, 400)),
        cost("llm-compressor", "GPTQ", 6, 1, **measured(140, 150, 700)),
        cost("normtweak", "+ norm tweak", 2, 0, **measured(60, 70, 300)),
        cost("normtweak", "+ norm tweak", 6, 0, **measured(180, 190, 350)),
        cost("normtweak", "+ norm tweak", 2, 1, **measured(60, 70, 300)),
        cost("normtweak", "+ norm tweak", 6, 1, **measured(160, 190, 350)),
        cost("autoround", "default", 2, 0, error="out of patience"),
        cost("autoround", "default", 6, 0, **measured(1, 1, 1)),
        told
        | {"tool": "llm-compressor", "setting": "GPTQ", "perplexity": 12.0}
        | {"perplexity_float": 10.0, "quantized": 0.4}
        | measured(20, 20, 100),
        told
        | {"tool": "normtweak", "setting": "GPTQ", "perplexity": 11.0}
        | {"perplexity_float": 10.0, "quantized": 0.4}
        | measured(30, 30, 50),
        told | {"tool": "gptqmodel", "setting": "GPTQ", "error": "ValueError: 172 | 32"},
    ]
    return write_summary(tmp_path, {}, runs).splitlines(), tmp_path


def test_a_block_costs_what_six_take_more_than_two(page):
    lines, out = page
    # Four blocks take it 80 and 100 seconds, and us 120 and 100: ratios within a repetition.
    assert "| llm-compressor | GPTQ | 22.5 | 22.5 | 700 | 1 | 1.00 to 1.00 | 1 |" in lines
    assert "| normtweak | + norm tweak | 27.5 | 30 | 350 | 1.25 | 1.00 to 1.50 | 0.5 |" in lines
    rows = {row["tool"]: row for row in json.loads((out / "peers.json").read_text())["cost"]}
    assert rows["normtweak"]["cpu_seconds_ratios"] == [1.0, 1.5]


def test_what_failed_stays_and_says_why(page):
    lines, out = page
    assert "| autoround | default | out of patience |  |  |  |  |  |" in lines
    assert "| llama | 4 | gptqmodel | GPTQ | ValueError: 172 / 32 |  |  |  |  |  |  |" in lines
    assert (out / "peers.png").stat().st_size > 10_000


def test_quality_stands_beside_that_of_the_float_model(page):
    assert (
        "| llama | 4 | normtweak | GPTQ | 11.0000 | 1.1000 | 40% | 30 | 30 | 50 | 1.5 |" in page[0]
    )


def test_a_linear_that_a_tool_left_alone_is_not_counted():
    noise = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    rounded = (noise * 2).round().clamp(-8, 7) * 0.5
    assert quantized_share([rounded, noise[:, :32]], 4, None) == 2 / 3
    assert quantized_share([rounded], 4, 32) == 1
    assert quantized_share([noise], 4, 32) == 0
