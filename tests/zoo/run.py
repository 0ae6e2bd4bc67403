"""Tries the zoo and writes docs/models.md. Exits with 1 where the promise of that page is broken.

Each row is kept once it is known, so that an interrupted run goes on where it stopped. Names given
as arguments pick architectures, which are tried again.
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

# Last: FLeRM itself is imported as it is installed.
sys.path.append(str(Path(__file__).parents[2]))

from tests.zoo.architecture import Architecture
from tests.zoo.catalogue import catalogue, try_number
from tests.zoo.page import PAGE, page
from tests.zoo.trial import Outcome

ROWS = PAGE.parents[1] / ".cache" / "zoo" / "rows.jsonl"
"""The outcomes of a run that has not come to its end: one a line, of which the last counts."""


def main(wanted: list[str]) -> int:
    """The exit code."""
    everything = catalogue()
    absent = [each for each in everything if not each.installed]
    for each in absent:
        print(f"{each.name} is left out: {each.package} is not installed", flush=True)
    known = kept_rows()
    if not wanted and all(_key(each) in known for each in everything if each.installed):
        ROWS.unlink(missing_ok=True)
        known = {}
    numbers = [
        number
        for number, each in enumerate(everything)
        if each.installed
        and (any(word in each.name for word in wanted) if wanted else _key(each) not in known)
    ]
    ROWS.parent.mkdir(parents=True, exist_ok=True)
    processes = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool, ROWS.open("a") as rows:
        for outcome in pool.map(try_number, numbers):
            rows.write(json.dumps(asdict(outcome)) + "\n")
            rows.flush()
            print(line(outcome), flush=True)
    known = kept_rows()
    outcomes = [known[_key(each)] for each in everything if _key(each) in known]
    PAGE.write_text(page(outcomes, [each for each in everything if _key(each) not in known]))
    broken = sum(bool(each.broken) for each in outcomes)
    print(f"{len(outcomes) - broken} of {len(outcomes)} architectures hold what is promised")
    return 1 if broken else 0


def _key(architecture: Architecture | Outcome) -> tuple[str, str]:
    return architecture.package, architecture.name


def kept_rows() -> dict[tuple[str, str], Outcome]:
    """By package and name, what a run before found."""
    if not ROWS.exists():
        return {}
    found = (Outcome(**json.loads(each)) for each in ROWS.read_text().splitlines())
    return {_key(each): each for each in found}


def line(outcome: Outcome) -> str:
    """The outcome in one line of text."""
    said = "; ".join(outcome.broken) or "holds"
    return (
        f"{outcome.package} {outcome.name} ({outcome.seconds:.0f} s, "
        f"{outcome.estimator or 'nothing measured'}, {outcome.measured} of {outcome.tensors}, "
        f"{outcome.ratio:.2f}, {outcome.deviations:.1f}): {said}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
