"""A loss curve as small as a word."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flerm_server.store.queries import LossPoints

WIDTH, HEIGHT = 96, 28  # pixels
EDGE = 4
REACH = 4  # how far above the lowest loss the curve is drawn, in rises to its nearest neighbour


@dataclass(frozen=True, slots=True)
class Sparkline:
    """Where an SVG of `WIDTH` × `HEIGHT` has its line and its lowest point.

    line: points as `polyline` takes them. x, y: of the lowest loss.
    """

    line: str
    x: float
    y: float


def sparkline(points: LossPoints) -> Sparkline | None:
    """The finite losses of a curve over the logarithm of the rate; None: there are not two.

    Losses far above the lowest are drawn at the upper edge.
    """
    curve = [(math.log2(point.lr), point.loss) for point in points if point.seeds]
    if len(curve) < 2:
        return None
    best = min(range(len(curve)), key=lambda at: curve[at][1])
    low = curve[best][1]
    rises = [curve[at][1] - low for at in (best - 1, best + 1) if 0 <= at < len(curve)]
    reach = REACH * max(rises) or 1.0
    start, end = curve[0][0], curve[-1][0]

    def place(rate: float, loss: float) -> tuple[float, float]:
        across = (rate - start) / (end - start)
        above = min(1.0, (loss - low) / reach)
        return (
            round(EDGE + across * (WIDTH - 2 * EDGE), 1),
            round(HEIGHT - EDGE - above * (HEIGHT - 2 * EDGE), 1),
        )

    places = [place(*each) for each in curve]
    return Sparkline(" ".join(f"{x},{y}" for x, y in places), *places[best])
