"""Writes the tables and figures of docs/results.md from a registry that holds sweeps.

    python docs/figures/results.py file:///FOLDER [PRESET:SEEDS …]

Without presets it writes all sweeps that were begun. Each section of the page stands between a pair
of comments that name its sweep. Figures go into docs/figures/results/; with `tables` before the
registry they stay as they are. The overview is made from the page's sections.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from flerm_client import RegistryClient
from flerm_client.cli.plot import render
from flerm_core.matching.depth_rules import DEFAULT_DEPTH
from flerm_experiments.sweep.figures import picture_height, sweep_figures
from flerm_experiments.sweep.registry_state import finished_trials
from flerm_experiments.sweep.results import curve_rows, markdown
from flerm_experiments.sweep.spec import load, presets

Row = Mapping[str, str]

HERE = Path(__file__).parent
PAGE, FIGURES = HERE.parent / "results.md", HERE / "results"
WIDTH = 1100

SYSTEMS = {
    "residual MLP": ("resmlp", "resmlp-ablations"),
    "decoder, prenorm": (
        "decoder-width",
        "decoder-depth",
        "decoder-init-scale",
        "decoder-large",
        "decoder-periodic",
    ),
    "decoder, postnorm": ("decoder-postnorm", "decoder-postnorm-large"),
    "decoder, prenormpostmod": ("decoder-prenormpostmod", "decoder-prenormpostmod-large"),
    "LoRA, GPT-2-shaped": ("lora-gpt2",),
    "LoRA, Llama-shaped": ("lora-llama",),
}
SCALES = (
    "width ×4",
    "width ×8",
    "depth ×4",
    "depth ×8",
    "width ×4, depth ×4",
    "init scale ×0.25",
    "init scale ×4",
    "rank ×4",
    "rank ×16",
)
VARIANTS = {
    "plain": "plain",
    "matched": "matched",
    "matched-periodic": "matched periodically",
    "mup": "µP",
}
DEFAULT = (
    f"matched-{DEFAULT_DEPTH}"  # stands for `matched` where every depth rule has a row of its own
)
REGRET_SYSTEMS = {
    "decoder, prenorm": ("decoder-width", "decoder-depth", "decoder-large"),
    "prenorm: batch and duration": ("decoder-batch",),
    "prenorm with a warm-up": ("decoder-depth-warmup",),
    "prenorm by AdamW, decay 0.1": ("decoder-decay",),
    "prenorm by AdamW, decay 1.0": ("decoder-decay-strong",),
    "prenorm by AdamW, decay 1.0, 1,200 steps": ("decoder-decay-long",),
    "prenorm by Muon and AdamW": ("decoder-muon",),
    "decoder, postnorm": ("decoder-postnorm", "decoder-postnorm-large"),
    "decoder, prenormpostmod": ("decoder-prenormpostmod", "decoder-prenormpostmod-large"),
    "prenormpostmod: batch and duration": ("decoder-prenormpostmod-batch",),
    "prenormpostmod with a warm-up": ("decoder-prenormpostmod-warmup",),
    "prenormpostmod, norms held": ("decoder-prenormpostmod-held",),
    "residual MLP": ("resmlp", "resmlp-batch"),
    "LoRA, GPT-2-shaped": ("lora-gpt2",),
    "LoRA, Llama-shaped": ("lora-llama",),
}
PUBLISHED = ("mup", "plain-sqrt", "plain-moments", "plain-sqrt-moments")
INITIAL = "init scale"


def main(arguments: list[str]) -> None:
    """Replaces the sections of the named sweeps. Sections that the page does not have yet go to
    its end.
    """
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
        PAGE.write_text(
            page.replace(known.group(), text) if known else f"{page.rstrip()}\n\n{text}\n"
        )
    for part, write in {"overview": overview, "regrets": regrets}.items():
        page = PAGE.read_text()
        pattern = re.compile(rf"<!-- {part} -->.*?<!-- end {part} -->", re.DOTALL)
        text = f"<!-- {part} -->\n{write(page)}\n<!-- end {part} -->"
        PAGE.write_text(pattern.sub(text.replace("\\", r"\\"), page))


def section(name: str, seeds: int, registry: str, *, draw: bool) -> str:
    """Table and figures of a sweep; empty for a sweep that was not begun."""
    sweep = load(name)
    sweep = replace(sweep, seeds=seeds or sweep.seeds)
    entries = finished_trials(sweep, registry)
    found = curve_rows(sweep, entries)
    if not any(row.runs for row in found[1:]):
        return ""
    if draw:
        FIGURES.mkdir(exist_ok=True)
        with RegistryClient(registry) as client:
            figures = sweep_figures(sweep, entries, found, client.trajectory)
        for kind, figure in figures.items():
            drawn = render(figure, ".png", WIDTH, picture_height(figure))
            (FIGURES / f"{name}-{kind}.png").write_bytes(drawn)
    longer = tuple(f"{each}-" for each in presets() if each.startswith(f"{name}-"))
    own = [
        each for each in sorted(FIGURES.glob(f"{name}-*.png")) if not each.name.startswith(longer)
    ]
    pictures = [f"![{each.stem}](figures/results/{each.name})" for each in own]
    return "\n\n".join([markdown(sweep, found).strip(), *pictures])


def overview(page: str) -> str:
    """A table of all systems and scales.

    Its entries are the shift of the optimum, and the loss at the base's rate over the lowest loss
    of plain training at any rate. The loss is left out where the two were trained with other seeds,
    whose losses differ in level. Only the scales in `SCALES` are in the overview.
    """
    head = ["", "", *VARIANTS.values()]
    lines = [head, ["---"] * len(head)]
    for system, sections in SYSTEMS.items():
        cells = _cells(page, sections)
        there = [scale for scale in SCALES if (scale, "plain") in cells]
        for scale in there:
            plain = cells[scale, "plain"]
            curve_rows = [
                _matched_row(cells, scale) if v == "matched" else cells.get((scale, v))
                for v in VARIANTS
            ]
            entries = [_entry(row, plain) if row else "" for row in curve_rows]
            lines.append([system if scale == there[0] else "", scale, *entries])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


class RegretCell(NamedTuple):
    """The rows of one cell. published: the best published rule. by_batch: `matched-batch`."""

    system: str
    scale: str
    plain: Row
    published: Row | None
    matched: Row | None
    by_batch: Row | None

    @property
    def ours(self) -> Row:
        """The matched row that counts: by batch where batch or length differ."""
        return self.by_batch or self.matched or {}


def regrets(page: str) -> str:
    """A table of the regrets of all cells that are no change of the initialisation, and how many
    of them are small. A dash: not tried.
    """
    head = ["", "", "seeds", "plain", "published rules", "matched", "matched-batch", "its shift"]
    lines = [head, ["---"] * len(head)]
    cells = [*_regret_cells(page)]
    for at, cell in enumerate(cells):
        shift = f"{cell.ours['shift']} ({cell.ours['90 % interval']})".replace("-", "−")
        rows = (cell.plain, cell.published, cell.matched, cell.by_batch)
        first = at == 0 or cells[at - 1].system != cell.system
        named = [cell.system if first else "", cell.scale, cell.ours["seeds"]]
        lines.append([*named, *map(_percent, rows), shift])
    found = [_regret(cell.ours) for cell in cells]
    near = [cell.ours for cell in cells if abs(float(cell.ours["shift"])) <= 0.25]
    narrow = [row for row in near if _half_width(row["90 % interval"]) <= 0.25]
    said = [
        f"Of these {len(cells)} cells, {sum(each <= 0.01 for each in found)} have at most 1 % "
        "regret by matching (`matched-batch` where batch or length differ) and "
        f"{sum(each <= 0.02 for each in found)} at most 2 %; in {len(near)} the optimum stays "
        f"within a quarter octave, in {len(narrow)} of them with a 90 % interval of at most half "
        "an octave."
    ]
    for name, others in {
        "plain": [(cell.plain, cell.ours) for cell in cells],
        "published rules": [(cell.published, cell.ours) for cell in cells if cell.published],
    }.items():
        more = [_regret(mine) - _regret(other) for other, mine in others]
        said.append(
            f"Against {name}, matching has less regret in {sum(each < 0 for each in more)} of "
            f"{len(more)} cells and more in {sum(each > 0 for each in more)}."
        )
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([table, "", *said])


def _regret_cells(page: str) -> Iterator[RegretCell]:
    """The cells of `REGRET_SYSTEMS` that have a matched row with a regret."""
    for system, sections in REGRET_SYSTEMS.items():
        rows = _cells(page, sections)
        for scale in (scale for scale, variant in rows if variant == "plain"):
            published = [rows[scale, each] for each in PUBLISHED if (scale, each) in rows]
            cell = RegretCell(
                system,
                scale,
                plain=rows[scale, "plain"],
                published=min(published, key=_regret, default=None),
                matched=_matched_row(rows, scale),
                by_batch=rows.get((scale, "matched-batch")),
            )
            if "regret" in cell.ours and not scale.startswith(INITIAL):
                yield cell


def _matched_row(rows: Mapping[tuple[str, str], Row], scale: str) -> Row | None:
    """The row of matched training by the default depth rule, which has a name of its own where
    every rule has a row.
    """
    return rows.get((scale, DEFAULT), rows.get((scale, "matched")))


def _regret(row: Row) -> float:
    """The regret of a row; infinite where it is not known."""
    known = re.match(r"([\d.]+) %", row["regret"])
    return float(known.group(1)) / 100 if known else float("inf")


def _percent(row: Row | None) -> str:
    return "–" if row is None else row["regret"].partition(" (")[0]


def _half_width(interval: str) -> float:
    """Half of an interval's width; infinite where there is none."""
    low, _, high = interval.partition(" to ")
    return (float(high) - float(low)) / 2 if high else float("inf")


def _cells(page: str, sections: tuple[str, ...]) -> dict[tuple[str, str], Row]:
    """The rows of the sections' tables by scale and variant, where there is a shift.

    Of rows for the same scale and variant the first one counts.
    """
    found: dict[tuple[str, str], Row] = {}
    for name in sections:
        known = re.search(rf"<!-- sweep {re.escape(name)} -->.*?<!-- end -->", page, re.DOTALL)
        if known is None:
            continue
        lines = [line for line in known.group().splitlines() if line[:1] == "|"]
        head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        for cells in rows:
            row = dict(zip(head, cells, strict=True))
            if row["shift"] != "–":
                found.setdefault((row["scale"], row["variant"]), row)
    return found


def _entry(row: Row, plain: Row) -> str:
    shift, carried = row["shift"], row["loss at base's rate"]
    if carried == "–" or row["seeds"] != plain["seeds"]:
        return shift.replace("-", "−")
    percent = round(100 * (float(carried) / float(plain["best loss"]) - 1))
    cost = f"{percent:+d}" if percent else "0"
    return f"{shift}, {cost}\N{NO-BREAK SPACE}%".replace("-", "−")


if __name__ == "__main__":
    main(sys.argv[1:])
