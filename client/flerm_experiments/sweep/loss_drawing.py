"""Loss against learning rate as an SVG drawing, for reports that load nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

Point = tuple[float, float]

_WIDTH, _HEIGHT = 704, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 150, 16, 48


def loss_drawing(curve: Sequence[Point], big: Sequence[Point], optimum: float) -> str:
    """The base's curve, the big run's point, and a line at the base's optimum.

    curve, big: (learning rate, finite loss). optimum: a learning rate; NaN for none. Empty for no
    points.
    """
    points = [*curve, *big]
    if not points:
        return ""
    octaves = [math.log2(lr) for lr, _ in points]
    losses = [loss for _, loss in points]
    x = _Scale(min(octaves) - 0.3, max(octaves) + 0.3, _LEFT, _WIDTH - _RIGHT)
    margin = 0.08 * (max(losses) - min(losses)) or 0.01
    low, high = min(losses) - margin, max(losses) + margin
    y = _Scale(low, high, _HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<path d="M{_LEFT} {y(tick):.1f}H{_WIDTH - _RIGHT}" stroke="var(--line)"/>'
        f'<text x="{_LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end" fill="currentColor">'
        f"{tick:.4g}</text>"
        for tick in _ticks(low, high)
    ]
    rates = sorted({lr for lr, _ in points})
    parts += [
        f'<text x="{x(math.log2(lr)):.1f}" y="{_HEIGHT - _BOTTOM + 20}" text-anchor="middle" '
        f'fill="currentColor">{lr:.3g}</text>'
        for lr in rates[:: math.ceil(len(rates) / 8)]
    ]
    parts.append(
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 8}" text-anchor="middle" '
        'fill="currentColor">final loss against learning rate</text>'
    )
    if not math.isnan(optimum):
        at = x(math.log2(optimum))
        parts.append(
            f'<path d="M{at:.1f} {_TOP}V{_HEIGHT - _BOTTOM}" stroke="currentColor" '
            'stroke-dasharray="4 4" opacity=".6"/>'
        )
    places = [f"{x(math.log2(lr)):.1f} {y(loss):.1f}" for lr, loss in sorted(curve)]
    if places:
        parts.append(
            f'<path d="M{"L".join(places)}" fill="none" stroke="var(--mark)" stroke-width="2"/>'
        )
    parts += [_dot(x(math.log2(lr)), y(loss), "var(--mark)") for lr, loss in curve]
    labels = [(sorted(curve)[-1], "base", "var(--mark)")] if curve else []
    for lr, loss in big:
        parts.append(_dot(x(math.log2(lr)), y(loss), "var(--big)"))
        labels.append(((lr, loss), "big model, matched", "var(--big)"))
    for (lr, loss), text, colour in labels:
        parts.append(
            f'<text x="{x(math.log2(lr)) + 9:.1f}" y="{y(loss) + 4:.1f}" fill="{colour}">'
            f"{text}</text>"
        )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Final loss against learning '
        f'rate">{"".join(parts)}</svg>'
    )


class _Scale:
    """Maps values from `low` to `high` onto places from `start` to `end`."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self._low, self._start = low, start
        self._factor = (end - start) / (high - low)

    def __call__(self, value: float) -> float:
        return self._start + (value - self._low) * self._factor


def _dot(x: float, y: float, colour: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers from `low` to `high`."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * each for each in (1, 2, 5, 10) if power * each >= rough)
    first = math.ceil(low / step)
    return [at * step for at in range(first, math.floor(high / step) + 1)]
