"""The search, replayed on the recorded families: it spends at most 60 % of a fixed grid of the same
resolution, and finds the grid's optimum."""

from __future__ import annotations

import io
import itertools
import json
import math
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from flerm_core.tuning.best_lr import SweepRun, curve_optimum
from flerm_core.tuning.optimum_shift import complete_curve
from flerm_experiments.sweep.lr_search import Losses, runs_to_train

ARCHIVE = Path(__file__).parents[3] / "docs/figures/results/recordings.tar.xz"
OCTAVES = 9
"""Of a fixed grid: a decade and a half to either side of a guess, as docs/sweeps.md has it."""


def recordings() -> Iterator[dict[str, Any]]:
    """What the archive says of each recording."""
    with tarfile.open(ARCHIVE) as archive:
        for member in archive:
            if "/recordings/" in member.name:
                file = io.BytesIO(archive.extractfile(member).read())
                yield from map(json.loads, pq.read_table(file)["message"].to_pylist())


def recorded_curves() -> dict[str, dict[tuple[int, int], float]]:
    """Curve to its losses by (octave, seed): what differs in anything else is another curve."""
    curves: dict[str, dict[tuple[int, int], float]] = defaultdict(dict)
    for content in recordings():
        spec = content["spec"]
        octave = math.log2(spec["lr"])
        if content["status"] not in ("completed", "diverged") or octave != round(octave):
            continue
        same = {key: spec.get(key) for key in ("family", "role", "variant", "optimizer")}
        same |= {"config": spec["config"], "estimator": spec["estimator"]["name"]}
        tags = {key: value for key, value in spec["tags"].items() if key != "job"}
        key = json.dumps([same, tags], sort_keys=True)
        loss = content.get("finalLoss", math.inf)
        curves[key][round(octave), int(spec.get("seed", 0))] = loss
    return {key: whole for key, each in curves.items() if (whole := _whole(each)) is not None}


def _whole(curve: dict[tuple[int, int], float]) -> dict[tuple[int, int], float] | None:
    """The losses of the rates and seeds that were all trained, if the optimum lies among them."""
    rates = sorted({octave for octave, _ in curve})
    seeds = 0
    while sum((rate, seeds) in curve for rate in rates) >= 3:
        seeds += 1
    kept = [rate for rate in rates if all((rate, seed) in curve for seed in range(seeds))]
    found = {(rate, seed): curve[rate, seed] for rate in kept for seed in range(seeds)}
    if seeds == 0 or len(kept) < 3:
        return None
    best = min(kept, key=lambda rate: sum(found[rate, seed] for seed in range(seeds)))
    return found if kept[0] < best < kept[-1] else None


def optimum(losses: Losses) -> float:
    runs = [
        SweepRun(
            lr=2.0**octave,
            seed=seed,
            loss=loss if math.isfinite(loss) else None,
            status="completed" if math.isfinite(loss) else "diverged",
        )
        for (octave, seed), loss in losses.items()
    ]
    return math.log2(curve_optimum(complete_curve(runs)))


def on_grid(curve: Losses, seeds: int, first: int) -> dict[tuple[int, int], float]:
    """A fixed grid. Between recorded rates losses lie on a line, and beyond them they go on to rise
    by what they rose last."""
    rates = sorted({octave for octave, _ in curve})
    found = dict(curve)
    for seed in range(seeds):
        for low, high in itertools.pairwise(rates):
            for octave in range(low + 1, high):
                part = (octave - low) / (high - low)
                found[octave, seed] = (1 - part) * curve[low, seed] + part * curve[high, seed]
        for end, inner, step in ((rates[0], rates[1], -1), (rates[-1], rates[-2], 1)):
            edge = curve[end, seed]
            rise = max(edge - curve[inner, seed], 1e-3) if math.isfinite(edge) else math.inf
            for far in range(1, 2 * OCTAVES):
                found[end + step * far, seed] = edge + far * rise
    return {
        (octave, seed): loss
        for (octave, seed), loss in found.items()
        if first <= octave < first + OCTAVES
    }


CURVES = recorded_curves()


def test_there_are_recorded_curves_of_every_family() -> None:
    families = {json.loads(key)[0]["family"] for key in CURVES}
    assert len(CURVES) >= 15
    assert {"decoder", "decoder-postnorm", "lora-gpt2", "lora-llama"} <= families


@pytest.mark.parametrize("error", [-2, -1, 0, 1, 2])
def test_the_search_finds_the_grids_optimum_at_a_part_of_its_cost(error: int) -> None:
    """error: by how many octaves the first guess is wrong."""
    spent = whole = 0
    for key, curve in CURVES.items():
        seeds = 1 + max(seed for _, seed in curve)
        best = round(optimum(curve))
        grid = on_grid(curve, seeds, best + error - OCTAVES // 2)
        done: dict[tuple[int, int], float] = {}
        while missing := runs_to_train(done, seeds, best + error):
            done |= {pair: grid[pair] for pair in missing}
        assert abs(optimum(done) - optimum(grid)) <= 0.15, key
        spent, whole = spent + len(done), whole + len(grid)
        assert len(done) <= 0.6 * len(grid), key
    assert spent <= 0.6 * whole
    print(f"error {error}: {spent} of {whole} runs, {spent / whole:.0%}")
