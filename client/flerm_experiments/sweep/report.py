"""The report of a tuned run, as Markdown and as a page of HTML that needs nothing else."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from flerm_core.tuning.cautions import AT_AN_END, ONE_SEED, UNKNOWN_REGRET
from flerm_core.tuning.transfer_report import is_bracketed
from flerm_experiments.sweep.job_outcome import duration
from flerm_experiments.sweep.loss_drawing import loss_drawing
from flerm_experiments.sweep.sampler_search import SearchAnswer, label, short, values_text
from flerm_experiments.sweep.tune import BaseAnswer, TunedRun

Row = Sequence[str]
_SHOWN_POINTS = 10


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with sentences, and below a drawing (SVG), a table, or text as it was printed."""

    heading: str
    sentences: tuple[str, ...]
    drawing: str = ""
    table: tuple[Row, ...] = ()
    printed: str = ""


def sections(run: TunedRun) -> list[Section]:
    """What the report says."""
    return [
        _answer(run),
        *([_searched(run.base.searched)] if run.base.searched is not None else []),
        _curve(run),
        _cost(run),
        _matched(run),
        Section("What the dry run said", (), printed=run.dry_run),
    ]


def markdown(run: TunedRun) -> str:
    """The report as Markdown."""
    lines = [f"# {_title(run)}", ""]
    for section in sections(run):
        lines += [f"## {section.heading}", "", *section.sentences, ""]
        if section.table:
            head, *rows = section.table
            rule = ["---:" if at else "---" for at in range(len(head))]
            lines += [f"| {' | '.join(row)} |" for row in (head, rule, *rows)] + [""]
        if section.printed:
            lines += ["```text", section.printed, "```", ""]
    return "\n".join(lines)


def page(run: TunedRun) -> str:
    """The report as a page of HTML with a drawing of the curve."""
    parts = [f"<h1>{html.escape(_title(run))}</h1>"]
    for section in sections(run):
        parts.append(f"<h2>{html.escape(section.heading)}</h2>")
        parts += [f"<p>{html.escape(each)}</p>" for each in section.sentences]
        if section.drawing:
            parts.append(f"<div>{section.drawing}</div>")
        if section.table:
            parts.append(_html_table(section.table))
        if section.printed:
            parts.append(f"<pre>{html.escape(section.printed)}</pre>")
    return _PAGE.replace("{title}", html.escape(_title(run))).replace("{body}", "\n".join(parts))


def answer_sentence(base: BaseAnswer) -> str:
    """The rate to use, in a sentence."""
    sentence = f"The best learning rate of the base is {base.lr:.4g}"
    if base.searched is not None:
        sentence += f", with {values_text(base.searched.best)}"
    if not math.isnan(base.row.optimum):
        sentence += f"; the optimum of its curve lies at {base.row.optimum:.4g}"
    if not math.isnan(base.interval.low):
        sentence += f" (90 % interval {base.interval.low:.4g} to {base.interval.high:.4g})"
    return f"{sentence}."


def _title(run: TunedRun) -> str:
    return f"{run.base.sweep.title or run.base.sweep.name}: tuned small, trained big"


def _answer(run: TunedRun) -> Section:
    cell = run.big.trial.cell
    assert cell is not None
    loss = "diverged" if math.isinf(run.big.loss) else f"ended with loss {run.big.loss:.4f}"
    command = run.base.sweep.command
    assert command is not None
    return Section(
        "Answer",
        (
            answer_sentence(run.base),
            *_cautions(run),
            f"The big model ({cell.size}), matched at {run.base.lr:.4g}, {loss}; its recording is "
            f"{run.big.recording} in the family {run.base.sweep.family_name}.",
            f"The command is: {command.text}",
        ),
    )


def _cautions(run: TunedRun) -> list[str]:
    """When not to trust the rate, and what regret to expect."""
    found = []
    if run.base.row.seeds == 1:
        found.append(ONE_SEED)
    if not is_bracketed(run.base.row.points):
        found.append(AT_AN_END)
    return [*found, UNKNOWN_REGRET]


def _searched(search: SearchAnswer) -> Section:
    names = list(search.best.by_name)
    rows: list[Row] = [("loss", "learning rate", *names)]
    for point in search.ranked[:_SHOWN_POINTS]:
        loss = search.points[point].loss
        shown = "no loss" if math.isinf(loss) else f"{loss:.4f}"
        values = (short(value) for value in point.by_name.values())
        rows.append((shown, f"{search.sweep.lr_at(point.lr_index):.4g}", *values))
    more = len(search.points) - _SHOWN_POINTS
    return Section(
        "What was searched",
        (
            f"{_count(len(search.points), 'run')} of the base with seed 0 searched "
            f"{' and '.join(names)} together with the learning rate; the curve below, and the big "
            "model, have the values of the first row.",
            *(
                (f"The table has the best {_SHOWN_POINTS}, and leaves out {more}.",)
                if more > 0
                else ()
            ),
            *(
                f"Failed: {label(search.sweep, point)}: {why}"
                for point, why in search.failures.items()
            ),
        ),
        table=tuple(rows),
    )


def _curve(run: TunedRun) -> Section:
    points = run.base.row.points
    rows: list[Row] = [("learning rate", "mean final loss", "spread over seeds", "seeds")]
    rows += [
        (
            f"{point.lr:.4g}",
            "diverged" if not point.seeds else f"{point.loss:.4f}",
            "–" if math.isnan(point.spread) else f"{point.spread:.4f}",
            f"{point.seeds}" + (f", {point.diverged} diverged" if point.diverged else ""),
        )
        for point in points
    ]
    curve = [(point.lr, point.loss) for point in points if point.seeds]
    big = [] if math.isinf(run.big.loss) else [(run.base.lr, run.big.loss)]
    return Section(
        "The base's curve",
        (
            f"Rates are {_spacing(run)}; losses are means over "
            f"{_count(run.base.row.seeds, 'seed')}.",
        ),
        drawing=loss_drawing(curve, big, run.base.row.optimum),
        table=tuple(rows),
    )


def _spacing(run: TunedRun) -> str:
    return "those that the sweep lists" if run.base.sweep.rates else "an octave (a factor 2) apart"


def _cost(run: TunedRun) -> Section:
    searched = [] if run.base.searched is None else run.base.searched.points.values()
    # Runs of the search that lie on the curve are in both.
    seconds = {each.recording: each.seconds for each in (*run.base.finished.values(), *searched)}
    runs, spent = len(seconds), math.fsum(seconds.values())
    whole = runs * run.big.seconds
    rows = (
        ("what", "runs", "time"),
        (
            "search and sweep of the base" if searched else "sweep of the base",
            f"{runs}",
            duration(spent),
        ),
        ("the big run", "1", duration(run.big.seconds)),
        ("together", f"{runs + 1}", duration(spent + run.big.seconds)),
        ("a sweep of the big model", f"{runs}", duration(whole)),
    )
    return Section(
        "Cost",
        (
            f"The base was trained {_count(runs, 'time')} in {duration(spent)}, the big model once "
            f"in {duration(run.big.seconds)}.",
            f"A sweep of the big model with as many runs would have cost {duration(whole)}.",
            "A run's time is that from its first measurement to its end.",
        ),
        table=rows,
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _matched(run: TunedRun) -> Section:
    rows: list[Row] = [("tensor", "shape", "multiplier", "initial learning rate")]
    rows += [
        (
            name,
            "×".join(map(str, run.shapes[name])),
            f"{multiplier:.4g}",
            f"{run.base.lr * multiplier:.4g}",
        )
        for name, multiplier in run.multipliers.items()
    ]
    alone = [name for name, multiplier in run.multipliers.items() if multiplier == 1.0]
    sentences = (
        f"{len(run.multipliers) - len(alone)} of {len(run.multipliers)} tensors have a multiplier "
        f"other than 1. The targets are of {_count(len(run.sources), 'recording')} of the base: "
        f"{', '.join(run.sources)}.",
        *((f"At the base's rate: {', '.join(alone)}.",) if alone else ()),
    )
    return Section("What was matched", sentences, table=tuple(rows))


def _html_table(table: Sequence[Row]) -> str:
    head, *rows = table
    cells = "".join(f"<th>{html.escape(each)}</th>" for each in head)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(each)}</td>' for each in row)}</tr>" for row in rows
    )
    return f"<div><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root { color-scheme: light dark; --line: #8884; --mark: #00796b; --big: #c2410c; }
@media (prefers-color-scheme: dark) { :root { --mark: #4db6ac; --big: #fb923c; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
div { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .75rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
pre { overflow-x: auto; font-size: .85rem; } p { overflow-wrap: anywhere; }
svg { width: 100%; min-width: 32rem; max-width: 44rem; height: auto; }
svg { font: 12px system-ui, sans-serif; }
</style>
</head>
<body>
{body}
</body>
</html>
"""
