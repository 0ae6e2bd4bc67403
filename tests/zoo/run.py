"""Tries the zoo and writes docs/models.md. Exits with 1 where the promise of that page is broken.

Names given as arguments pick architectures; the page is then left alone.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

# Last: FLeRM itself is imported as it is installed.
sys.path.append(str(Path(__file__).parents[2]))

from tests.zoo.catalogue import catalogue, try_number
from tests.zoo.page import PAGE, page


def main(wanted: list[str]) -> int:
    """The exit code."""
    everything = catalogue()
    absent = [each for each in everything if not each.installed]
    for each in absent:
        print(f"{each.name} is left out: {each.package} is not installed", flush=True)
    numbers = [
        number
        for number, each in enumerate(everything)
        if each.installed and (not wanted or any(word in each.name for word in wanted))
    ]
    outcomes = []
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        for outcome in pool.map(try_number, numbers):
            outcomes.append(outcome)
            said = "; ".join(outcome.broken) or "holds"
            print(
                f"{outcome.package} {outcome.name} ({outcome.seconds:.0f} s, "
                f"{outcome.estimator or 'nothing measured'}, {outcome.measured} of "
                f"{outcome.tensors}, {outcome.ratio:.2f}, {outcome.deviations:.1f}): {said}",
                flush=True,
            )
    if not wanted:
        PAGE.write_text(page(outcomes, absent))
    broken = sum(bool(each.broken) for each in outcomes)
    print(f"{len(outcomes) - broken} of {len(outcomes)} architectures hold what is promised")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
