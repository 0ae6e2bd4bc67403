"""The first transfer gate: does the learning rate that is best for the base stay best at four times its width?

    python benchmarks/transfer_width.py [--workload decoder] [--width 4] [--seeds 3] [--steps 300] [--jobs 2]

Records the base at learning rates a factor 2 apart, then trains the wide model plainly and matched, all seen once. Prints the
optimum of each curve (a parabola in log2 lr through the best rate and its neighbours, on the mean over seeds) and its loss.
Reach: the matched optimum within ¼ octave of the base's, the matched loss no worse than plain training's best.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flerm_core.best import Run, best_rate

EXPONENTS = {"base": range(-9, -2), "plain": range(-12, -4), "matched": range(-9, -3)}


def main() -> None:
    """Runs the grid, at most `--jobs` trainings at a time, each on one core."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", default="decoder")
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        curves = {curve: run_curve(curve, options, Path(folder)) for curve in EXPONENTS}
    base, plain, matched = (best_rate(options.workload, curves[curve]) for curve in EXPONENTS)
    print(f"{options.workload} ×{options.width} wide, {options.steps} steps, {options.seeds} seeds")
    for name, best in (("base", base), ("plain", plain), ("matched", matched)):
        shift = octaves(best.optimum / base.optimum)
        print(f"  {name:<8} optimum 2^{octaves(best.optimum):.2f} ({shift:+.2f} octaves from the base's), loss {best.loss:.4f}")
        print("           " + "  ".join(f"2^{octaves(point.lr):.0f}: {point.loss:.4f}" for point in best.points))


def octaves(rate: float) -> float:
    """log2."""
    from math import log2

    return log2(rate)


def run_curve(curve: str, options: argparse.Namespace, folder: Path) -> list[Run]:
    """All trainings of one curve. Matched ones take their targets from the base's recordings in `folder`."""

    def run(job: tuple[int, int]) -> Run:
        exponent, seed = job
        out = folder / f"{curve}{exponent}-{seed}.json"
        command = [sys.executable, "-m", "flerm_client.cli", "train", options.workload, "--lr", repr(2.0**exponent)]
        command += ["--steps", str(options.steps), "--seed", str(seed), "--json", str(out)]
        command += ["--record"] if curve == "base" else ["--width", str(options.width)]
        command += ["--match"] if curve == "matched" else []
        if curve != "plain":
            command += ["--registry", f"file://{folder}/registry"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "FLERM_SPOOL": str(folder / "spool")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        result = json.loads(out.read_text())
        return Run(lr=2.0**exponent, seed=seed, loss=result["final_loss"], status=result["status"])

    (folder / "registry").mkdir(exist_ok=True)
    jobs = [(exponent, seed) for exponent in EXPONENTS[curve] for seed in range(options.seeds)]
    with ThreadPoolExecutor(options.jobs) as pool:
        return list(pool.map(run, jobs))


if __name__ == "__main__":
    main()
