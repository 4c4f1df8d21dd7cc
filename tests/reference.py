"""Slow, obvious oracles that share no code with what they check."""

import torch


def gptq_oracle(W, H, bits, group_size, percdamp, order, grids):
    """Explicit optimal-brain-surgeon recursion in float64: invert the remaining Hessian per column.

    `grids(group, W_now)` gives (scale, zero), each (out,), when a group's first column is reached.
    """
    W = W.double().clone()
    H = H.double().clone()
    H += percdamp * H.diagonal().mean() * torch.eye(len(H), dtype=torch.float64)
    codes = torch.zeros_like(W)
    remaining = list(order)
    known = {}
    for column in order:
        group = column // group_size
        if group not in known:
            scale, zero = grids(group, W)
            known[group] = (scale.double(), zero.double())
        scale, zero = known[group]
        code = torch.clamp(torch.round(W[:, column] / scale) + zero, 0, 2**bits - 1)
        codes[:, column] = code
        error = W[:, column] - scale * (code - zero)
        inverse = torch.linalg.inv(H[remaining][:, remaining])
        k = remaining.index(column)
        W[:, remaining] -= torch.outer(error / inverse[k, k], inverse[k])
        remaining.remove(column)
    scales = torch.stack([known[g][0] for g in sorted(known)], dim=1)
    zeros = torch.stack([known[g][1] for g in sorted(known)], dim=1)
    return codes, scales, zeros


def grid_oracle(row, bits, symmetric, mse):
    """Best grid of one row by plain Python loops; returns (scale, zero)."""
    low, high = min(0.0, min(row)), max(0.0, max(row))
    if symmetric:
        high = max(-low, high)
        low = -high
    if low == high == 0:
        low, high = -1.0, 1.0
    top = 2**bits - 1
    best = None
    for step in range(80 if mse else 1):
        shrink = 1 - step * 0.01
        scale = (high - low) * shrink / top
        zero = 2 ** (bits - 1) if symmetric else min(max(round(-low * shrink / scale), 0), top)
        error = 0.0
        for w in row:
            code = min(max(round(w / scale) + zero, 0), top)
            error += abs(scale * (code - zero) - w) ** 2.4
        if best is None or error < best[0]:
            best = (error, scale, zero)
    return best[1], best[2]
