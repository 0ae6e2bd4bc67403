"""Writes the tables and figures of docs/results.md from a registry that holds sweeps.

`python docs/figures/results.py file:///FOLDER [PRESET:SEEDS …]`; without presets, all that have been begun. Each section of the
page stands between a pair of comments that name its sweep; figures go into docs/figures/results/.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from flerm_client.sweep.definition import load, presets
from flerm_client.sweep.ledger import finished

HERE = Path(__file__).parent
PAGE, FIGURES = HERE.parent / "results.md", HERE / "results"
SECTION = "<!-- sweep {name} -->\n{body}\n<!-- end -->"


def main(registry: str, asked: list[str]) -> None:
    """Replaces the sections of those asked for; ones that the page does not have yet go to its end."""
    page = PAGE.read_text()
    for each in asked or [name for name in presets() if finished(load(name), registry)]:
        name, _, seeds = each.partition(":")
        section = SECTION.format(name=name, body=body(name, seeds, registry))
        pattern = re.compile(rf"<!-- sweep {re.escape(name)} -->.*?<!-- end -->", re.DOTALL)
        page = pattern.sub(lambda _, text=section: text, page) if pattern.search(page) else f"{page.rstrip()}\n\n{section}\n"
    PAGE.write_text(page)


def body(name: str, seeds: str, registry: str) -> str:
    """The table, then the figures."""
    common = [sys.executable, "-m", "flerm_client.cli", "sweep", name, "--registry", registry]
    common += ["--seeds", seeds] if seeds else []
    table = subprocess.run([*common, "--markdown"], check=True, capture_output=True, text=True).stdout.strip()
    if len(load(name).cells) <= 2:  # one scale, plain and matched: the table says it all
        return table
    drawn = subprocess.run([*common, "--figure", str(FIGURES)], check=True, capture_output=True, text=True).stdout.split()
    pictures = [f"![{Path(each).stem}](figures/results/{Path(each).name})" for each in drawn]
    return "\n\n".join([table, *pictures])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
