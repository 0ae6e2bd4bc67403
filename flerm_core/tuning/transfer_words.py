"""A transfer report in sentences, the same on pages and on the command line."""

from __future__ import annotations

import math

from flerm_core.tuning.best_lr import Best
from flerm_core.tuning.transfer_report import TransferReport, TransferRow


def base_words(best: Best) -> str:
    """The advice for the base, with the spread of its optimum where that is known."""
    if math.isnan(best.optimum_spread):
        return best.advice
    spread = best.optimum_spread
    octaves = "less than 0.01" if spread < 0.005 else f"{spread:.2f}"
    return f"{best.advice} Over seeds the optimum varies by ± {octaves} octaves."


def transfer_words(report: TransferReport) -> str:
    """How well the base's rate carried over to the biggest matched model; empty: not known."""
    row = report.headline
    if row is None:
        return ""
    found = f"Carried over to {row.label} by matching, the optimum {place_words(row)}"
    if not math.isnan(row.cost):
        found += (
            f", and the base's rate gives a loss {cost_words(row.cost)} "
            "the best that plain training of this model reaches"
        )
    plain = report.plain_beside(row)
    if plain is None or math.isnan(plain.shift.octaves):
        return f"{found}."
    plainly = f"{found}. Trained plainly, the optimum {place_words(plain)}"
    if math.isinf(plain.cost):
        return f"{plainly}, and training at the base's rate diverges."
    if math.isnan(plain.cost):
        return f"{plainly}."
    return f"{plainly}, and the base's rate gives a loss {cost_words(plain.cost)} that."


def place_words(row: TransferRow) -> str:
    """Where a row's optimum lies: `lies 0.28 octaves below the base's (90 %: −0.43 to −0.05)`."""
    octaves, low, high = row.shift.octaves, row.shift.low, row.shift.high
    interval = "" if math.isnan(low) else f" (90 %: {signed(low)} to {signed(high)})"
    if not row.bracketed:
        interval += ", at an end of the rates tried"
    if abs(octaves) < 0.005:
        return f"lies at the base's{interval}"
    side = "above" if octaves > 0 else "below"
    return f"lies {abs(octaves):.2f} octaves {side} the base's{interval}"


def cost_words(cost: float) -> str:
    """The cost in words: `1.2 % below`, `as low as`, `17 % above` or `that diverges, against`."""
    if math.isinf(cost):
        return "that diverges, against"
    if abs(cost) < 0.0005:
        return "as low as"
    return f"{abs(cost):.1%} {'above' if cost > 0 else 'below'}".replace("%", " %")


def signed(value: float) -> str:
    """A shift with its sign, and a minus as long as the plus."""
    return f"{value:+.2f}".replace("-", "−") if abs(value) >= 0.005 else "0.00"
