"""Posteriors of sparse coding over the few states that matter, without ever forming a reconstruction.

The states of a point: nothing active; every single cause; and all combinations of 2 to gamma of the H' causes that suit
the point best. With `P = Y W^T` and the Gram matrix `G = W W^T`, the squared error of a state follows from the few
entries of its causes, independent of the number of features. Combinations form a tree: one extends its parent by a
cause that comes after the parent's causes, so what the parent cost is added to.

Tree arrays, int32 `[t]`: `parent` (-1 for a single cause), `cause` (place among the candidates), `value` (index of the
value it takes), `size` (how many are active). Single causes come first, `singles` of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from windlass.kernels.compiled import compiled

_MOST = 12
"""More causes than this are never active together."""


@compiled
def best_causes(scores: Any, out: Any) -> None:
    """The `len(out)` highest scores, highest first, the lower index first of equal ones."""
    kept = 0
    for h in range(len(scores)):
        at = kept
        while at > 0 and scores[out[at - 1]] < scores[h]:
            at -= 1
        if at < len(out):
            kept = min(kept + 1, len(out))
            for move in range(kept - 1, at, -1):
                out[move] = out[move - 1]
            out[at] = h


@compiled
def _active(t: int, parent: Any, cause: Any, value: Any, chosen: Any, causes: Any, values: Any) -> int:
    """Causes and value indices of a state; returns how many."""
    count = 0
    while t >= 0:
        causes[count], values[count] = chosen[cause[t]], value[t]
        count += 1
        t = parent[t]
    return count


@compiled
def log_sum(logs: Any, count: int) -> float:
    top = -np.inf
    for t in range(count):
        top = max(top, logs[t])
    total = 0.0
    for t in range(count):
        total += np.exp(logs[t] - top)
    result: float = top + np.log(total)
    return result


@compiled
def expect_linear(
    projected: Any, gram: Any, values: Any, prior: Any, precision: float, by_angle: bool, parent: Any, cause: Any,
    value: Any, singles: int, candidates: int, use: Any, evidence: Any, mean: Any, active: Any, second: Any,
    counts: Any,
) -> None:  # fmt: skip
    """Causes that add up, each taking one of a few values.

    Args:
        projected: float64 `[n, H]`, `Y W^T`.
        values: float64 `[v]`, the values other than zero; `prior`: log odds of each against zero.
        precision: Inverse temperature over the noise variance.
        by_angle: Candidates are those of the largest cosine (binary), else of the best single state.
        use: bool `[n]`: the points whose moments are taken; of the others only the evidence.
        evidence: float64 `[n]`, without the part that no state changes.
        mean, active: `[n, H]`: expected value of a cause, and chance that it is not zero.
        second: `[H, H]`: sum of expected products, added to.
        counts: `[v]`: expected number of times each value is taken, added to.
    """
    n, causes = projected.shape
    v, states = len(values), len(parent)
    logs = np.empty(1 + causes * v + states)
    cost, odds = np.empty(states), np.empty(states)
    chosen, scores = np.empty(candidates, np.int64), np.empty(causes)
    held, taken = np.empty(_MOST, np.int64), np.empty(_MOST, np.int64)
    for point in range(n):
        p = projected[point]
        logs[0] = 0.0
        for h in range(causes):
            scores[h] = p[h] / np.sqrt(gram[h, h]) if by_angle else -np.inf
            for i in range(v):
                error = values[i] * (values[i] * gram[h, h] - 2 * p[h])
                logs[1 + h * v + i] = prior[i] - 0.5 * precision * error
                if not by_angle:
                    scores[h] = max(scores[h], logs[1 + h * v + i])
        best_causes(scores, chosen)
        first = 1 + causes * v - singles
        for t in range(states):
            h, x = chosen[cause[t]], values[value[t]]
            cost[t] = x * (x * gram[h, h] - 2 * p[h])
            odds[t] = prior[value[t]]
            up = parent[t]
            if up >= 0:
                cross, above = 0.0, up
                while above >= 0:
                    cross += values[value[above]] * gram[h, chosen[cause[above]]]
                    above = parent[above]
                cost[t] += cost[up] + 2 * x * cross
                odds[t] += odds[up]
                logs[first + t] = odds[t] - 0.5 * precision * cost[t]
        count = first + states
        evidence[point] = log_sum(logs, count)
        if not use[point]:
            continue
        mean[point] = 0
        active[point] = 0
        for h in range(causes):
            for i in range(v):
                q = np.exp(logs[1 + h * v + i] - evidence[point])
                mean[point, h] += q * values[i]
                active[point, h] += q
                second[h, h] += q * values[i] * values[i]
                counts[i] += q
        for t in range(singles, states):
            q = np.exp(logs[first + t] - evidence[point])
            if q < 1e-12:
                continue
            size = _active(t, parent, cause, value, chosen, held, taken)
            for a in range(size):
                x = q * values[taken[a]]
                mean[point, held[a]] += x
                active[point, held[a]] += q
                counts[taken[a]] += q
                for b in range(size):
                    second[held[a], held[b]] += x * values[taken[b]]


@compiled
def expect_maximum(
    data: Any, elements: Any, raised: Any, rho: float, prior: float, precision: float, parent: Any, cause: Any,
    value: Any, singles: int, candidates: int, use: Any, evidence: Any, mean: Any, weighted: Any, weight: Any,
    errors: Any,
) -> None:  # fmt: skip
    """Causes that occlude: the largest one shows.

    Args:
        data: float64 `[n, D]`; `elements`: `[H, D]`, above zero; `raised`: `elements ** rho`.
        weighted, weight: `[H, D]`: sums of `A y` and `A`, with A the share that a cause has in the smoothed maximum;
            added to.
        errors: `[n]`: expected squared error.
    """
    n, d = data.shape
    causes, states = len(elements), len(parent)
    logs, squared = np.empty(1 + causes + states), np.empty(1 + causes + states)
    shown = np.empty((states, d))
    chosen, scores = np.empty(candidates, np.int64), np.empty(causes)
    held, taken = np.empty(_MOST, np.int64), np.empty(_MOST, np.int64)
    smooth = np.empty(d)
    first = 1 + causes - singles
    for point in range(n):
        y = data[point]
        squared[0] = 0.0
        for j in range(d):
            squared[0] += y[j] * y[j]
        for h in range(causes):
            beyond, error = 0.0, 0.0
            for j in range(d):
                off = elements[h, j] - y[j]
                beyond += max(off, 0.0)
                error += off * off
            scores[h], squared[1 + h] = -beyond, error
        best_causes(scores, chosen)
        for t in range(states):
            row, element = shown[t], elements[chosen[cause[t]]]
            if parent[t] < 0:
                row[:] = element
                continue
            above, error = shown[parent[t]], 0.0
            for j in range(d):
                row[j] = max(above[j], element[j])
            for j in range(d):
                error += (row[j] - y[j]) * (row[j] - y[j])
            squared[first + t] = error
        logs[0] = -0.5 * precision * squared[0]
        for h in range(causes):
            logs[1 + h] = prior - 0.5 * precision * squared[1 + h]
        for t in range(singles, states):
            size, up = 0, t
            while up >= 0:
                size, up = size + 1, parent[up]
            logs[first + t] = size * prior - 0.5 * precision * squared[first + t]
        count = first + states
        evidence[point] = log_sum(logs, count)
        if not use[point]:
            continue
        mean[point] = 0
        errors[point] = np.exp(logs[0] - evidence[point]) * squared[0]
        for h in range(causes):
            q = np.exp(logs[1 + h] - evidence[point])
            mean[point, h] += q
            errors[point] += q * squared[1 + h]
            if q > 1e-9:
                for j in range(d):
                    weighted[h, j] += q * y[j]
                    weight[h, j] += q
        for t in range(singles, states):
            q = np.exp(logs[first + t] - evidence[point])
            errors[point] += q * squared[first + t]
            if q < 1e-9:
                continue
            size = _active(t, parent, cause, value, chosen, held, taken)
            for a in range(size):
                mean[point, held[a]] += q
            if q < 1e-6:  # too little to be learned from, and powers are dear
                continue
            smooth[:] = 0
            for a in range(size):
                for j in range(d):
                    smooth[j] += raised[held[a], j]
            for a in range(size):
                for j in range(d):
                    part = raised[held[a], j] / smooth[j]
                    if part < 1e-9:
                        continue
                    share = q * part ** ((rho - 1) / rho)
                    weighted[held[a], j] += share * y[j]
                    weight[held[a], j] += share


@compiled
def _eliminate(matrix: Any, right: Any, size: int) -> float:
    """Solve `matrix x = right` in place for several columns; returns the log of the determinant."""
    log_determinant = 0.0
    columns = right.shape[1]
    for i in range(size):
        best = i
        for k in range(i + 1, size):
            if abs(matrix[k, i]) > abs(matrix[best, i]):
                best = k
        if best != i:
            for j in range(size):
                matrix[i, j], matrix[best, j] = matrix[best, j], matrix[i, j]
            for j in range(columns):
                right[i, j], right[best, j] = right[best, j], right[i, j]
        log_determinant += np.log(abs(matrix[i, i]))
        for k in range(i + 1, size):
            factor = matrix[k, i] / matrix[i, i]
            for j in range(i, size):
                matrix[k, j] -= factor * matrix[i, j]
            for j in range(columns):
                right[k, j] -= factor * right[i, j]
    for i in range(size - 1, -1, -1):
        for j in range(columns):
            for k in range(i + 1, size):
                right[i, j] -= matrix[i, k] * right[k, j]
            right[i, j] /= matrix[i, i]
    return log_determinant


@compiled
def slab_state(
    p: Any, gram: Any, mu: Any, psi: Any, noise: float, held: Any, size: int, matrix: Any, right: Any, kappa: Any
) -> float:
    """One state of spikes with Gaussian slabs: its log likelihood over that of nothing active.

    Args:
        p, gram: As above; `mu` `[H]`, `psi` `[H, H]`: mean and covariance of the slabs; `noise`: variance.
        held: The causes of the state, the first `size`.
        matrix, right: Work space `[12, 12]` and `[12, 13]`; on return `right[:, 1:]` is the posterior covariance.
        kappa: On return the posterior mean of the slabs.
    """
    gain = 0.0
    for a in range(size):
        h = held[a]
        left = p[h]
        for b in range(size):
            left -= gram[h, held[b]] * mu[held[b]]
        gain += mu[h] * (p[h] + left)  # |y|^2 - |y - mu W|^2
        kappa[a] = left / noise
    for a in range(size):
        right[a, 0] = 0.0
        for b in range(size):
            right[a, 0] += psi[held[a], held[b]] * kappa[b]
            right[a, 1 + b] = psi[held[a], held[b]]
            total = 0.0
            for c in range(size):
                total += psi[held[a], held[c]] * gram[held[c], held[b]]
            matrix[a, b] = total / noise + (1.0 if a == b else 0.0)
    log_determinant = _eliminate(matrix, right[:, : size + 1], size)
    quadratic = 0.0
    for a in range(size):
        quadratic += kappa[a] * right[a, 0]
        kappa[a] = mu[held[a]] + right[a, 0]
    return 0.5 * (gain / noise + quadratic - log_determinant)


@compiled
def expect_slabs(
    projected: Any, gram: Any, mu: Any, psi: Any, noise: float, prior: Any, temperature: float, parent: Any, cause: Any,
    value: Any, singles: int, candidates: int, use: Any, evidence: Any, mean: Any, active: Any, second: Any,
    together: Any, crossed: Any,
) -> None:  # fmt: skip
    """Spikes with Gaussian slabs.

    Args:
        prior: `[H]`: log odds of each cause.
        temperature: Inverse; the likelihood counts that much.
        mean, active: `[n, H]`: expected slab times spike, and spike.
        second, together, crossed: `[H, H]`: sums of `<sz sz>`, `<s s>` and `<s sz>`; added to.
    """
    n, causes = projected.shape
    states = len(parent)
    logs = np.empty(1 + causes + states)
    chosen, scores = np.empty(candidates, np.int64), np.empty(causes)
    held, taken = np.empty(_MOST, np.int64), np.empty(_MOST, np.int64)
    matrix, right, kappa = np.empty((_MOST, _MOST)), np.empty((_MOST, _MOST + 1)), np.empty(_MOST)
    first = 1 + causes - singles
    for point in range(n):
        p = projected[point]
        logs[0] = 0.0
        for h in range(causes):
            held[0] = h
            likelihood = slab_state(p, gram, mu, psi, noise, held, 1, matrix, right, kappa)
            scores[h] = likelihood
            logs[1 + h] = prior[h] + temperature * likelihood
        best_causes(scores, chosen)
        for t in range(singles, states):
            size = _active(t, parent, cause, value, chosen, held, taken)
            total = temperature * slab_state(p, gram, mu, psi, noise, held, size, matrix, right, kappa)
            for a in range(size):
                total += prior[held[a]]
            logs[first + t] = total
        count = first + states
        evidence[point] = log_sum(logs, count)
        if not use[point]:
            continue
        mean[point] = 0
        active[point] = 0
        for t in range(-causes, states):
            if 0 <= t < singles:
                continue
            q = np.exp(logs[1 + causes + t if t < 0 else first + t] - evidence[point])
            if q < 1e-9:
                continue
            if t < 0:
                size = 1
                held[0] = causes + t
            else:
                size = _active(t, parent, cause, value, chosen, held, taken)
            slab_state(p, gram, mu, psi, noise, held, size, matrix, right, kappa)
            for a in range(size):
                h = held[a]
                mean[point, h] += q * kappa[a]
                active[point, h] += q
                for b in range(size):
                    second[h, held[b]] += q * (kappa[a] * kappa[b] + right[a, 1 + b])
                    together[h, held[b]] += q
                    crossed[h, held[b]] += q * kappa[b]
