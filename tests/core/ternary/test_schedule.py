"""Schedules: where they start and end, and when each block rises."""

import itertools

import pytest
from pydantic import ValidationError

from normtweak_core.ternary.config import TernaryConfig
from normtweak_core.ternary.schedule import lambdas, rise

KINDS = ["linear", "cosine", "sigmoid", "exponential"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_curve_rises_from_zero_to_one(kind):
    values = [rise(kind, i / 100) for i in range(101)]
    assert values[0] == pytest.approx(0, abs=1e-12)
    assert values[-1] == pytest.approx(1)
    assert all(b > a for a, b in itertools.pairwise(values))
    assert rise(kind, -1) == values[0]
    assert rise(kind, 2) == values[-1]


def test_curves_have_their_published_middle():
    assert rise("linear", 0.25) == 0.25
    assert rise("cosine", 0.25) == pytest.approx(0.1464466)
    assert rise("sigmoid", 0.5) == pytest.approx(0.5)
    assert rise("exponential", 0.5) == pytest.approx(1 - 0.5**4)


def test_a_global_schedule_raises_all_blocks_together_and_then_stays():
    config = TernaryConfig(steps=100, warmup=0.5)
    assert lambdas(config, 0, 3) == [0, 0, 0]
    assert lambdas(config, 20, 3) == [0.4] * 3
    assert lambdas(config, 50, 3) == lambdas(config, 99, 3) == [1, 1, 1]


def test_no_schedule_is_ternary_from_the_first_step():
    assert lambdas(TernaryConfig(steps=10, warmup=0), 0, 2) == [1, 1]


def test_layer_by_layer_without_overlap_one_block_rises_at_a_time():
    config = TernaryConfig(steps=100, warmup=0.8, scope="layerwise", overlap=0)
    for step in range(81):
        values = lambdas(config, step, 4)
        assert sum(0 < value < 1 for value in values) <= 1
        assert values == sorted(values, reverse=True)
    assert lambdas(config, 30, 4) == pytest.approx([1, 0.5, 0, 0])
    assert lambdas(config, 80, 4) == [1, 1, 1, 1]


def test_overlap_is_the_share_of_a_rise_beside_the_next():
    config = TernaryConfig(steps=100, warmup=1, scope="layerwise", overlap=0.5)
    # One rise takes 100 / (1 + 3 * 0.5) = 40 steps, the next block starts after half of it.
    assert lambdas(config, 20, 4) == pytest.approx([0.5, 0, 0, 0])
    assert lambdas(config, 30, 4) == pytest.approx([0.75, 0.25, 0, 0])


def test_backward_order_is_the_mirror_image():
    forward = TernaryConfig(steps=60, scope="layerwise")
    backward = TernaryConfig(steps=60, scope="layerwise", order="backward")
    for step in (0, 7, 19, 60):
        assert lambdas(backward, step, 5) == lambdas(forward, step, 5)[::-1]


def test_lambda_can_start_above_zero():
    config = TernaryConfig(steps=100, warmup=0.5, lambda_start=0.2)
    assert lambdas(config, 0, 1) == [0.2]
    assert lambdas(config, 25, 1) == pytest.approx([0.6])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"warmup": 1.5}, "share of training, from 0 to 1; found 1.5"),
        ({"lambda_start": -0.1}, "lambda_start must be from 0 to 1; found -0.1"),
        ({"schedule": "steps"}, "Input should be 'linear', 'cosine', 'sigmoid' or 'exponential'"),
        ({"overlap": 1.0}, "less than 1"),
        ({"order": "backward"}, "order is only read with scope layerwise; found backward"),
        ({"norm": "none", "affine": False}, "affine is only read with norm rms"),
        ({"objective": "ce", "temperature": 2.0}, "temperature is only read with objective kd"),
        ({"kd_weight": 0.3}, "kd_weight is only read with objective mix"),
        ({"warmup": 0, "schedule": "cosine"}, "schedule is only read with warmup above 0"),
        ({"batch": 8, "accumulate": 3}, "accumulate must divide batch; found 3 parts of 8"),
    ],
)
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        TernaryConfig(**values)
