"""The column loop against an explicit recursion without blocks, and its properties."""

import pytest
import torch

from normtweak_core.errors import HessianError, InputError
from normtweak_core.quantization import gptq as gptq_module
from normtweak_core.quantization.gptq import gptq, round_to_nearest, split_rows
from normtweak_core.quantization.grid import GridSpec, fit_grid, quantize_to_codes
from normtweak_core.quantization.hessian import InputStatistics, corrected_weight, inverse_cholesky
from tests.reference import gptq_oracle


def problem(seeded, out=12, width=48, tokens=400, seed=0):
    generator = seeded(seed)
    mixing = torch.randn(width, width, generator=generator) / width**0.5
    x = torch.randn(tokens, width, generator=generator) @ mixing @ mixing
    x[:, 5] *= 4  # act-order has something to order
    return torch.randn(out, width, generator=generator), x, 2 * x.T @ x / tokens


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [None, 16])
@pytest.mark.parametrize("act_order", [False, True])
def test_codes_equal_the_explicit_recursion(seeded, bits, symmetric, group_size, act_order):
    W, _, H = problem(seeded, seed=bits)
    # At 8 bits neighbouring ranges of the search tie within float32, so min-max there.
    spec = GridSpec(bits, symmetric, bits < 8, torch.float32)
    width = group_size or W.shape[1]
    solved = gptq(W, H, group_size, spec, act_order=act_order, percdamp=0.01, exponents=[3.0])

    def grids(group, W_now):
        source = W if act_order else W_now.float()
        columns = slice(group * width, (group + 1) * width)
        damped = H.diagonal() + 0.01 * H.diagonal().mean()
        return fit_grid(source[:, columns].contiguous(), spec, damped[columns], 3.0)

    order = torch.arange(48)
    if act_order:
        order = torch.argsort(H.diagonal(), descending=True, stable=True)
    codes, scales, zeros = gptq_oracle(W, H, bits, width, 0.01, order.tolist(), grids)
    # A tie broken the other way in float32 moves the columns, and grids, after it in its row.
    agree = torch.isclose(solved.weight.scales.double(), scales, rtol=1e-4).all(dim=1)
    agree &= (solved.weight.zeros.double() == zeros).all(dim=1)
    agree &= (solved.weight.codes.double() == codes).double().mean(dim=1) > 0.9
    assert agree.sum() >= len(W) - 1


@pytest.mark.parametrize("act_order", [False, True])
def test_column_block_size_does_not_change_the_result(seeded, monkeypatch, act_order):
    W, _, H = problem(seeded, width=96)
    spec = GridSpec(3, False, True, torch.float16)
    results = []
    for size in (7, 32, 96, 128):
        monkeypatch.setattr(gptq_module, "BLOCK_SIZE", size)
        results.append(gptq(W, H, 32, spec, act_order=act_order, percdamp=0.01).weight)
    for other in results[1:]:
        assert (other.codes == results[0].codes).float().mean() > 0.995


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_each_row_keeps_the_range_that_leaves_its_output_closest(seeded, act_order, symmetric):
    W, _, H = problem(seeded, out=40)
    damped = H.double() + 0.01 * H.diagonal().mean() * torch.eye(48)
    spec = GridSpec(2, symmetric, True, torch.float16)

    def solve(exponents):
        solved = gptq(
            W, H, 16, spec, act_order=act_order, percdamp=0.01, exponents=exponents
        ).weight
        D = solved.dequantize().double() - W.double()
        return ((D @ damped) * D).sum(1), solved.codes

    together, codes = solve([2.0, 3.0, 4.0, 6.0])
    alone = [solve([exponent]) for exponent in (2.0, 3.0, 4.0, 6.0)]
    errors = torch.stack([error for error, _ in alone])
    assert torch.allclose(together, errors.amin(dim=0), rtol=1e-4)
    assert len(errors.argmin(dim=0).unique()) > 1
    kept = torch.stack([(codes == other).all(dim=1) for _, other in alone])
    assert kept.any(dim=0).all()


def test_sweeps_go_on_from_the_codes_of_gptq(seeded):
    W, x, H = problem(seeded, out=40)
    errors = []
    for sweeps in (0, 1, 4):
        spec = GridSpec(2, False, True, torch.float16)
        solved = gptq(W, H, 16, spec, act_order=True, percdamp=0.01, sweeps=sweeps).weight
        errors.append((x @ (solved.dequantize() - W).T).norm())
    assert errors[1] < 0.97 * errors[0]
    assert errors[2] < errors[1]


def test_identity_hessian_gives_round_to_nearest(seeded):
    W, _, _ = problem(seeded)
    spec = GridSpec(3, False, True, torch.float16)
    ours = gptq(W, torch.eye(48), 16, spec, act_order=True, percdamp=0.01).weight
    nearest = round_to_nearest(W, 16, spec).weight
    assert torch.equal(ours.codes, nearest.codes)
    assert torch.equal(ours.dequantize(), nearest.dequantize())


def test_every_code_is_the_nearest_once_the_errors_before_it_are_pushed_onto_its_column(seeded):
    W, _, H = problem(seeded)
    spec = GridSpec(2, False, True, torch.float32)
    solved = gptq(W, H, None, spec, act_order=False, percdamp=0.1).weight
    damped = H.double() + 0.1 * H.diagonal().mean() * torch.eye(48)
    U = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    rounded = solved.dequantize().double()
    # W - Q = E U: what a column held when its turn came was E_jj U_jj off its code.
    E = torch.linalg.solve_triangular(U, W.double() - rounded, upper=True, left=False)
    held = rounded + E * U.diagonal()
    scales, zeros = solved.scales.double(), solved.zeros.double()
    assert torch.equal(quantize_to_codes(held, scales, zeros, 3), solved.codes.double())
    assert (quantize_to_codes(W.double(), scales, zeros, 3) != solved.codes).any()


def test_output_error_falls_from_rtn_to_gptq(seeded):
    W, x, H = problem(seeded, out=64)
    spec = GridSpec(2, False, True, torch.float16)
    nearest = round_to_nearest(W, 16, spec).weight.dequantize()
    solved = gptq(W, H, 16, spec, act_order=True, percdamp=0.01).weight.dequantize()
    assert (x @ (solved - W).T).norm() < 0.8 * (x @ (nearest - W).T).norm()


def test_stacked_rows_equal_separate_solves_and_inputs_stay_untouched(seeded):
    W, _, H = problem(seeded, out=20)
    before_W, before_H = W.clone(), H.clone()
    spec = GridSpec(4, False, False, torch.float16)
    together = split_rows(gptq(W, H, 16, spec, act_order=True, percdamp=0.01).weight, [5, 15])
    for part, rows in zip(together, W.split([5, 15]), strict=True):
        alone = gptq(rows, H, 16, spec, act_order=True, percdamp=0.01).weight
        assert torch.equal(part.codes, alone.codes)
    assert torch.equal(W, before_W)
    assert torch.equal(H, before_H)


def test_dead_columns_become_zero_and_are_counted(seeded):
    W, _, H = problem(seeded)
    H[7], H[:, 7] = 0, 0
    spec = GridSpec(2, False, True, torch.float16)
    solved = gptq(W, H, 16, spec, act_order=True, percdamp=0.01, sweeps=3)
    assert solved.dead_columns == 1
    assert torch.equal(solved.weight.dequantize()[:, 7], torch.zeros(12))


def test_damping_is_raised_visibly_when_the_factorization_fails(seeded):
    W, _, _ = problem(seeded)
    H = torch.ones(48, 48)  # rank one: float64 Cholesky fails without damping
    H[0, 0] = 0.9
    solved = gptq(W, H, 16, GridSpec(4, False, False, torch.float16), act_order=False, percdamp=0.0)
    assert solved.percdamp > 0


def test_an_indefinite_hessian_is_an_error(seeded):
    W, _, _ = problem(seeded)
    H = torch.eye(48)
    H[0, 0] = -60.0
    H[1, 1] = 90.0
    with pytest.raises(HessianError, match="must be positive definite; it is not, even with"):
        gptq(W, H, 16, GridSpec(4, False, False, torch.float16), act_order=False, percdamp=0.01)


def test_a_group_size_that_does_not_divide_is_refused(seeded):
    W, _, H = problem(seeded)
    with pytest.raises(InputError, match="36 does not divide 48: choose a divisor, or null"):
        gptq(W, H, 36, GridSpec(4, False, False, torch.float16), act_order=False, percdamp=0.01)


def test_inverse_cholesky_inverts(seeded):
    _, _, H = problem(seeded)
    factor = inverse_cholesky(H, 0.05)
    damped = H.double() + 0.05 * H.diagonal().mean() * torch.eye(48)
    product = factor.U.double().T @ factor.U.double() @ damped
    assert torch.allclose(product, torch.eye(48, dtype=torch.float64), atol=1e-4)


def test_statistics_do_not_depend_on_how_tokens_are_batched(seeded):
    x = torch.randn(90, 8, generator=seeded(1))
    f = torch.randn(90, 8, generator=seeded(2))
    whole, parts = InputStatistics(8, x.device), InputStatistics(8, x.device)
    for statistics, cuts in ((whole, [90]), (parts, [30, 60])):
        for some, wanted in zip(x.split(cuts), f.split(cuts), strict=True):
            inputs = statistics.add(some.view(3, -1, 8))
            statistics.add_error(wanted.view(3, -1, 8) - inputs.view(3, -1, 8), inputs)
    H = whole.hessian()
    assert torch.allclose(H, 2 * x.T @ x / 90, atol=1e-5)
    assert torch.allclose(whole.cross(), 2 * (f - x).T @ x / 90, atol=1e-5)
    assert torch.allclose(H, parts.hessian(), atol=1e-6)
    assert torch.allclose(whole.cross(), parts.cross(), atol=1e-6)


@pytest.mark.parametrize("width", [8, 256, 300, 600])
def test_half_of_the_hessian_is_computed_and_all_of_it_returned(seeded, width):
    x = torch.randn(40, width, generator=seeded(1))
    statistics = InputStatistics(width, x.device)
    assert torch.equal(statistics.add(x.bfloat16()), x.bfloat16().float())
    x = x.bfloat16().double()
    H = statistics.hessian()
    assert torch.allclose(H.double(), 2 * x.T @ x / 40, atol=1e-6)
    assert torch.equal(H, H.T)


@pytest.mark.parametrize("width", [1, 7, 300, 1030])
def test_the_factor_of_any_width_inverts(seeded, width):
    x = torch.randn(2 * width, width, generator=seeded(1))
    H = x.T @ x / width
    U = inverse_cholesky(H, 0.01).U.double()
    damped = H.double() + 0.01 * H.diagonal().double().mean() * torch.eye(width)
    assert torch.equal(U, U.triu())
    assert torch.allclose(U.T @ U @ damped, torch.eye(width, dtype=torch.float64), atol=1e-4)


def mismatch(seeded, tokens=400, width=48):
    """Inputs of the quantized stream and what the float stream had there."""
    x = torch.randn(tokens, width, generator=seeded(2))
    return x, x + 0.3 * torch.randn(x.shape, generator=seeded(9))


def statistics_of(W, x, float_x):
    """H, and W C, from which `corrected_weight` starts."""
    statistics = InputStatistics(x.shape[1], x.device)
    statistics.add_error(float_x - x, statistics.add(x))
    return statistics.hessian(), W.double() @ statistics.cross().double()


def test_corrected_weight_is_the_least_squares_answer(seeded):
    W = torch.randn(12, 48, generator=seeded(1))
    x, float_x = mismatch(seeded)
    H, WC = statistics_of(W, x, float_x)
    best = torch.linalg.lstsq(x.double(), (float_x @ W.T).double()).solution.T
    ours = corrected_weight(W, H, WC, alpha=1.0, ridge=0.0)
    assert (ours.weight.double() - best).norm() < 1e-5 * (best - W).norm()
    assert ours.ridge == 0.0
    half = corrected_weight(W, H, WC, alpha=0.5, ridge=0.0).weight
    assert torch.allclose(half, (W + ours.weight) / 2, atol=1e-5)
    none = corrected_weight(W, H, WC, alpha=0.0, ridge=0.5)
    assert torch.equal(none.weight, W)
    assert none.ridge == 0.0
    strong = corrected_weight(W, H, WC, 1.0, 100.0)
    assert (strong.weight - W).norm() < 0.05 * (ours.weight - W).norm()
    assert strong.ridge == 100.0


def test_the_correction_equals_its_formula_in_float64(seeded):
    W = torch.randn(12, 48, generator=seeded(1))
    H, WC = statistics_of(W, *mismatch(seeded))
    regularized = H.double() + 0.01 * H.diagonal().double().mean() * torch.eye(48)
    expected = W + 0.7 * WC @ torch.linalg.inv(regularized)
    ours = corrected_weight(W, H, WC, 0.7, 0.01)
    assert torch.allclose(ours.weight.double(), expected, rtol=0, atol=1e-6)
    assert ours.ridge == 0.01


def test_what_dead_columns_did_is_handed_to_the_live_ones_and_they_stay_as_they_are(seeded):
    W = torch.randn(12, 48, generator=seeded(1))
    x, float_x = mismatch(seeded)
    x[:, [7, 20]] = 0  # the float stream has something there
    float_x[:, 7] += x[:, 6]
    live = torch.ones(48, dtype=torch.bool)
    live[[7, 20]] = False
    best = torch.linalg.lstsq(x[:, live].double(), (float_x @ W.T).double()).solution.T
    ours = corrected_weight(W, *statistics_of(W, x, float_x), alpha=1.0, ridge=0.0)
    assert (ours.weight[:, live].double() - best).norm() < 1e-5 * (best - W[:, live]).norm()
    assert torch.equal(ours.weight[:, ~live], W[:, ~live])
    assert ours.ridge == 0.0


def test_a_column_whose_squares_fall_below_float32_is_not_corrected(seeded):
    W = torch.randn(12, 48, generator=seeded(1))
    x, float_x = mismatch(seeded)
    x[:, 7] = 1e-30
    W[:, 7] = 0  # where the least change shows
    H, WC = statistics_of(W, x, float_x)
    assert H[7, 7] == 0
    assert WC[:, 7].abs().max() > 0
    ours = corrected_weight(W, H, WC, alpha=1.0, ridge=0.0)
    assert torch.equal(ours.weight[:, 7], W[:, 7])


@pytest.mark.parametrize("ridge", [0.0, 0.01])
def test_an_input_that_is_always_zero_corrects_nothing(seeded, ridge):
    W = torch.randn(12, 48, generator=seeded(1))
    x, float_x = mismatch(seeded)
    ours = corrected_weight(W, *statistics_of(W, torch.zeros_like(x), float_x), 1.0, ridge)
    assert torch.equal(ours.weight, W)
    assert ours.ridge == ridge


def test_gptq_of_an_input_that_is_always_zero_is_all_zero(seeded):
    W = torch.randn(12, 48, generator=seeded(1))
    spec = GridSpec(2, False, True, torch.float32)
    solved = gptq(W, torch.zeros(48, 48), 16, spec, act_order=True, percdamp=0.01, sweeps=2)
    assert solved.dead_columns == 48
    assert not solved.weight.dequantize().any()


@pytest.mark.parametrize("ridge", [0.0, 1e-9])
@pytest.mark.parametrize("kind", ["few tokens", "copied column", "sum of two columns"])
def test_a_ridge_too_small_for_a_deficient_hessian_is_raised_and_told(seeded, ridge, kind):
    W = torch.randn(12, 48, generator=seeded(1))
    x, float_x = mismatch(seeded, tokens=47 if kind == "few tokens" else 400)
    if kind == "copied column":
        x[:, 7] = x[:, 3]
    elif kind == "sum of two columns":
        x[:, 7] = 0.3 * x[:, 3] + x[:, 5]
    H, WC = statistics_of(W, x, float_x)
    ours = corrected_weight(W, H, WC, alpha=1.0, ridge=ridge)
    assert ours.ridge == pytest.approx(1e-3)
    assert torch.equal(ours.weight, corrected_weight(W, H, WC, 1.0, ours.ridge).weight)
    # The rounding of H is not taken for information: outputs are those of the least squares.
    best = torch.linalg.lstsq(x, float_x @ W.T, driver="gelsd").solution
    assert (x @ (ours.weight.T - best)).norm() < 0.1 * (x @ (W.T - best)).norm()


def test_an_indefinite_hessian_is_an_error_of_the_correction_too(seeded):
    W = torch.randn(12, 48, generator=seeded(1))
    H = torch.eye(48)
    H[0, 0], H[1, 1] = -60.0, 90.0
    message = r"must be positive definite; it is not, even with ridge=1\.0: use more or more varied"
    with pytest.raises(HessianError, match=message):
        corrected_weight(W, H, W, alpha=1.0, ridge=0.01)


@pytest.mark.parametrize(("levels", "used"), [("ternary", {1, 2, 3}), ("binary", {1, 3})])
def test_the_column_loop_takes_ternary_and_binary_grids(seeded, levels, used):
    W = torch.randn(24, 48, generator=seeded(1))
    X = torch.randn(400, 48, generator=seeded(2)) @ torch.randn(48, 48, generator=seeded(3))
    H = 2 * X.T @ X / len(X)
    spec = GridSpec(2, True, True, torch.float32, levels)
    solved = gptq(W, H, 16, spec, act_order=True, percdamp=0.01).weight
    assert set(solved.codes.unique().tolist()) == used
    nearest = round_to_nearest(W, 16, spec).weight
    errors = [((w.dequantize() - W) @ X.T).norm() for w in (solved, nearest)]
    assert errors[0] < 0.9 * errors[1]
