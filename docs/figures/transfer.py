"""The README's figure: final loss against learning rate, base model and one four times as wide, trained plainly and matched.

`python docs/figures/transfer.py` trains (about 8 minutes on 2 cores), writes `transfer.json` beside itself and draws
`transfer.svg` from it; `python docs/figures/transfer.py draw` only draws. Prenorm decoder on the bytes of Python's standard
library, 200 steps of 16 × 64, Adam, matched once at the start; the base is recorded with two seeds at each rate.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from statistics import fmean

HERE = Path(__file__).parent
RATES = [2.0**-k for k in (9, 8, 7, 6, 5, 4)]
SEEDS = {"base": (0, 1), "plain": (0,), "match": (0,)}
WIDTH, STEPS = 4, 200
SERIES = {"base": "base model", "plain": f"{WIDTH} × as wide, plain", "match": f"{WIDTH} × as wide, matched"}
COLOURS = {"base": "#6b7280", "plain": "#d9480f", "match": "#1864ab"}

Points = dict[str, list[list[float]]]


def measure() -> Points:
    """Per series, [learning rate, mean final loss over seeds], by rate. Diverged runs are left out."""
    with tempfile.TemporaryDirectory(prefix="flerm-figure-") as name, ThreadPoolExecutor(os.cpu_count()) as pool:
        folder = Path(name)

        def run(series: str, rate: float, seed: int) -> float:
            out = folder / f"{series}-{rate}-{seed}.json"
            mode = {"base": ["--record"], "plain": ["--width", str(WIDTH)], "match": ["--width", str(WIDTH), "--match"]}[series]
            command = [
                sys.executable,
                "-m",
                "flerm_client.cli",
                "train",
                "decoder",
                *mode,
                "--lr",
                repr(rate),
                "--seed",
                str(seed),
            ]
            command += ["--steps", str(STEPS), "--registry", f"file://{folder}/registry", "--json", str(out)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
            result = json.loads(out.read_text())
            return float(result["final_loss"]) if result["status"] == "completed" else math.nan

        points: Points = {}
        for series in SERIES:  # the base first: the others are matched to it
            jobs = [(series, rate, seed) for rate, seed in product(RATES, SEEDS[series])]
            losses = dict(zip(jobs, pool.map(run, *zip(*jobs, strict=True)), strict=True))
            means = [(rate, fmean(losses[series, rate, seed] for seed in SEEDS[series])) for rate in RATES]
            points[series] = [[rate, loss] for rate, loss in means if math.isfinite(loss)]
        return points


def draw(points: Points) -> str:
    """The figure as SVG: log₂ learning rate across, loss upwards, the best rate of each series marked."""
    width, height, left, right, top, bottom = 720, 400, 60, 20, 20, 50
    losses = [loss for series in points.values() for _, loss in series]
    low, high = math.floor(min(losses) * 10) / 10, min(math.ceil(max(losses) * 10) / 10, min(losses) + 1.0)
    first, last = math.log2(RATES[0]) - 0.3, math.log2(RATES[-1]) + 0.3

    def x(rate: float) -> float:
        return left + (math.log2(rate) - first) / (last - first) * (width - left - right)

    def y(loss: float) -> float:
        return top + (high - min(loss, high)) / (high - low) * (height - top - bottom)

    def text(at_x: float, at_y: float, words: str, anchor: str = "middle", extra: str = "") -> str:
        return f'<text x="{at_x:.1f}" y="{at_y:.1f}" text-anchor="{anchor}" {extra}>{words}</text>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">',
        "<style>text { fill: #333 }</style>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for tenth in range(round(low * 10), round(high * 10) + 1, 2):
        parts.append(f'<path d="M{left} {y(tenth / 10):.1f}H{width - right}" stroke="#e5e7eb"/>')
        parts.append(text(left - 8, y(tenth / 10) + 4, f"{tenth / 10:.1f}", "end"))
    parts += [
        text(x(rate), height - bottom + 20, f"2<tspan dy='-5' font-size='10'>−{-math.log2(rate):.0f}</tspan>") for rate in RATES
    ]
    parts.append(text((left + width - right) / 2, height - 10, "learning rate"))
    parts.append(
        text(
            16,
            (top + height - bottom) / 2,
            "final loss (nats per byte)",
            extra=f'transform="rotate(-90 16 {(top + height - bottom) / 2})"',
        )
    )
    for row, (series, label) in enumerate(SERIES.items()):
        colour, path = COLOURS[series], " ".join(f"{x(rate):.1f},{y(loss):.1f}" for rate, loss in points[series])
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        best = min(points[series], key=lambda point: point[1])
        for rate, loss in points[series]:
            size, fill = (7, colour) if [rate, loss] == best else (3.5, "white")
            parts.append(
                f'<circle cx="{x(rate):.1f}" cy="{y(loss):.1f}" r="{size}" fill="{fill}" stroke="{colour}" stroke-width="2"/>'
            )
        parts.append(f'<path d="M{width / 2 - 90:.0f} {top + 16 + 20 * row}h26" stroke="{colour}" stroke-width="2.5"/>')
        parts.append(text(width / 2 - 56, top + 20 + 20 * row, label, "start"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    """Measures unless asked only to draw, then draws."""
    data = HERE / "transfer.json"
    if sys.argv[1:] != ["draw"]:
        data.write_text(json.dumps(measure(), indent=1) + "\n")
    (HERE / "transfer.svg").write_text(draw(json.loads(data.read_text())))


if __name__ == "__main__":
    main()
