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


def grid_oracle(row, bits, symmetric, mse, importance=None, exponent=2.4):
    """Best grid of one row by plain Python loops; returns (scale, zero)."""
    importance = importance or [1.0] * len(row)
    low, high = min(0.0, min(row)), max(0.0, max(row))
    if symmetric:
        high = max(-low, high)
        low = -high
    if low == high == 0:
        low, high = -1.0, 1.0
    top = 2**bits - 1

    def grid(shrink):
        scale = (high - low) * shrink / top
        zero = 2 ** (bits - 1) if symmetric else min(max(round(-low * shrink / scale), 0), top)
        return scale, zero

    def error(shrink):
        scale, zero = grid(shrink)
        total = 0.0
        for w, weight in zip(row, importance, strict=True):
            code = min(max(round(w / scale) + zero, 0), top)
            total += weight * abs(scale * (code - zero) - w) ** exponent
        return total

    if not mse:
        return grid(1.0)
    near = min((1 - 0.04 * step for step in range(20)), key=error)
    return grid(min((near + 0.01 * step for step in (0, -3, -2, -1, 1, 2, 3)), key=error))


def descent_oracle(W, H, codes, scales, zeros, levels, sweeps):
    """Coordinate descent in float64 that asks the whole objective for each choice.

    `levels(zero)` gives the codes that may be used. Returns codes and scales.
    """
    W, H, codes, scales, zeros = (x.double().clone() for x in (W, H, codes, scales, zeros))
    width = W.shape[1] // scales.shape[1]
    L = torch.linalg.cholesky(H)
    for _ in range(sweeps):
        for row in range(len(W)):

            def rounded(row=row):
                return (codes[row] - zeros[row].repeat_interleave(width)) * scales[
                    row
                ].repeat_interleave(width)

            for group in range(scales.shape[1]):
                columns = slice(group * width, (group + 1) * width)
                u = torch.zeros_like(W[row])
                u[columns] = codes[row, columns] - zeros[row, group]
                if u.any():
                    without = rounded() - scales[row, group] * u - W[row]
                    best = torch.linalg.lstsq((u @ L)[:, None], -(without @ L)[:, None]).solution
                    if best.item() > 0:
                        scales[row, group] = best.item()
                for column in range(columns.start, columns.stop):
                    tried = []
                    for code in levels(zeros[row, group].item()):
                        codes[row, column] = code
                        D = rounded() - W[row]
                        tried.append(((D @ H @ D).item(), code))
                    codes[row, column] = min(tried)[1]
    return codes, scales
