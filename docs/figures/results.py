"""Writes the tables and figures of docs/results.md from a registry that holds sweeps.

`python docs/figures/results.py file:///FOLDER [PRESET:SEEDS …]`; without presets, all that have been begun. Each section of the
page stands between a pair of comments that name its sweep; figures go into docs/figures/results/. `tables` in place of the
registry's first word (`python docs/figures/results.py tables file:///FOLDER …`) leaves the figures as they are.
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

from flerm_client import RegistryClient
from flerm_client.cli.plot import render
from flerm_client.sweep.definition import load, presets
from flerm_client.sweep.drawings import drawings
from flerm_client.sweep.ledger import finished
from flerm_client.sweep.results import markdown, rows

HERE = Path(__file__).parent
PAGE, FIGURES = HERE.parent / "results.md", HERE / "results"
WIDTH, HEIGHT = 1100, 420


def main(arguments: list[str]) -> None:
    """Replaces the sections of those asked for; ones that the page does not have yet go to its end."""
    draw = arguments[0] != "tables"
    registry, *asked = arguments if draw else arguments[1:]
    for each in asked or presets():
        name, _, seeds = each.partition(":")
        text = section(name, int(seeds or 0), registry, draw=draw)
        if not text:
            continue
        page = PAGE.read_text()
        pattern = re.compile(rf"<!-- sweep {re.escape(name)} -->.*?<!-- end -->", re.DOTALL)
        text = f"<!-- sweep {name} -->\n{text}\n<!-- end -->"
        known = pattern.search(page)
        PAGE.write_text(page.replace(known.group(), text) if known else f"{page.rstrip()}\n\n{text}\n")


def section(name: str, seeds: int, registry: str, *, draw: bool) -> str:
    """The table, then the figures; empty for a sweep that was not begun."""
    sweep = load(name)
    sweep = replace(sweep, seeds=seeds or sweep.seeds)
    entries = finished(sweep, registry)
    found = rows(sweep, entries)
    if not any(row.runs for row in found[1:]):
        return ""
    if draw:
        FIGURES.mkdir(exist_ok=True)
        with RegistryClient(registry) as client:
            figures = drawings(sweep, entries, found, client.trajectory)
        for kind, figure in figures.items():
            (FIGURES / f"{name}-{kind}.png").write_bytes(render(figure, ".png", WIDTH, HEIGHT))
    pictures = [f"![{each.stem}](figures/results/{each.name})" for each in sorted(FIGURES.glob(f"{name}-*.png"))]
    return "\n\n".join([markdown(sweep, found).strip(), *pictures])


if __name__ == "__main__":
    main(sys.argv[1:])
