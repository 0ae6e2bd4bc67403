"""Interpolation and means of FSLRs by their logarithms, because FSLRs are positive scales.

NaN means unmeasured everywhere. A zero (an update that changed nothing) has no logarithm:
interpolation with a zero is linear, and a mean leaves zeros out unless all values are zero.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
ALL = slice(None)


def interpolate_rows(steps: NDArray[np.int64], values: NDArray[np.float32], asked: Array) -> Array:
    """The `values` [T, L] of `steps` [T] at the steps `asked` [S]: float64 [S, L].

    `Trajectory.resampled` has the rules.
    """
    result = np.full((len(asked), values.shape[1]), np.nan)
    if not len(steps):
        return result
    inside = np.clip(asked, steps[0], steps[-1])
    measured = ~np.isnan(values)
    whole: NDArray[np.bool_] = np.asarray(measured.all(axis=0))
    if whole.all():
        return _between(steps, values, inside)
    if whole.any():
        result[:, whole] = _between(steps, values, inside, whole)
    for column in np.flatnonzero(~whole & measured.any(axis=0)):
        rows = measured[:, column]
        known = steps[rows]
        column_values = values[rows, column][:, None]
        after = inside >= known[0]
        result[after, column] = _between(known, column_values, inside[after])[:, 0]
    return result


def _between(
    steps: NDArray[np.int64],
    values: NDArray[np.float32],
    asked: Array,
    columns: NDArray[np.bool_] | slice = ALL,
) -> Array:
    """`interpolate_rows` of `columns`, which have no NaN. After the last step their values hold."""
    upper = np.clip(np.searchsorted(steps, asked, "left"), 0, len(steps) - 1)
    lower = np.where(steps[upper] <= asked, upper, np.maximum(upper - 1, 0))
    gap = (steps[upper] - steps[lower]).astype(np.float64)
    weight = np.divide(asked - steps[lower], gap, out=np.zeros(len(asked)), where=gap > 0)
    # Only the rows that are needed are converted: a run may have a thousand times as many.
    left: Array = values[lower][:, columns].astype(np.float64)
    if not weight.any():  # every step asked for has a row, as where a sweep's seeds are averaged
        return left
    return blend(left, values[upper][:, columns].astype(np.float64), weight[:, None])


def blend(left: Array, right: Array, weight: Array | float) -> Array:
    """`left`^(1 - weight) · `right`^weight, exactly `left` at weight 0 and `right` at weight 1.

    Linear where one of them is 0. NaN where one of them is NaN and has a weight above 0.
    """
    weights = np.broadcast_to(
        np.asarray(weight, np.float64), np.broadcast_shapes(left.shape, np.shape(weight))
    )
    left, right = np.broadcast_to(left, weights.shape), np.broadcast_to(right, weights.shape)
    positive = (left > 0) & (right > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        geometric = np.exp((1 - weights) * np.log(left) + weights * np.log(right))
    mixed: Array = np.where(positive, geometric, (1 - weights) * left + weights * right)
    # The mean of two equal numbers is that number, bit for bit, so that a held value does not
    # drift.
    return np.where((weights == 0) | (left == right), left, np.where(weights == 1, right, mixed))


def geometric_mean(stack: Array) -> Array:
    """The geometric mean over axis 0 of [seeds, ...].

    The mean of one seed is that seed, bit for bit.
    """
    if len(stack) == 1:
        alone: Array = stack[0]
        return alone
    logs, count = _logs(stack)
    total = np.where(np.isnan(logs), 0.0, logs).sum(axis=0)
    mean: Array = np.exp(np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0))
    return np.where((count == 0) & (stack == 0).any(axis=0), 0.0, mean)


def log_spread(stack: Array) -> Array:
    """The sample standard deviation of ln FSLR over axis 0 of [seeds, ...].

    NaN where fewer than two values are positive.
    """
    logs, count = _logs(stack)
    known = np.where(np.isnan(logs), 0.0, logs)
    mean = np.divide(known.sum(axis=0), count, out=np.zeros(stack.shape[1:]), where=count > 0)
    squares = (np.where(np.isnan(logs), 0.0, logs - mean) ** 2).sum(axis=0)
    spread: Array = np.sqrt(
        np.divide(squares, count - 1, out=np.full(stack.shape[1:], np.nan), where=count > 1)
    )
    return spread


def _logs(stack: Array) -> tuple[Array, NDArray[np.int64]]:
    positive = stack > 0
    logs = np.log(stack, out=np.full(stack.shape, np.nan), where=positive)
    return logs, positive.sum(axis=0)
