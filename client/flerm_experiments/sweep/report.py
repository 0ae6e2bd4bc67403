"""The report of a tuned run, as Markdown and as a page of HTML that needs nothing else."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from flerm_experiments.sweep.loss_drawing import loss_drawing
from flerm_experiments.sweep.tune import BaseAnswer, TunedRun

Row = Sequence[str]


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
    return [_answer(run), _curve(run), _cost(run), _matched(run)]


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
        parts.append(section.drawing)
        if section.table:
            parts.append(_html_table(section.table))
        if section.printed:
            parts.append(f"<pre>{html.escape(section.printed)}</pre>")
    return _PAGE.replace("{title}", html.escape(_title(run))).replace("{body}", "\n".join(parts))


def answer_sentence(base: BaseAnswer) -> str:
    """The rate to use, in a sentence."""
    sentence = f"The best learning rate of the base is {base.lr:.4g}"
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
            f"The big model ({cell.size}), matched at {run.base.lr:.4g}, {loss}; its recording is "
            f"{run.big.recording} in the family {run.base.sweep.family_name}.",
            f"The command is: {command.text}",
        ),
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
        (f"Rates are {_spacing(run)}; losses are means over {run.base.row.seeds} seeds.",),
        drawing=loss_drawing(curve, big, run.base.row.optimum),
        table=tuple(rows),
    )


def _spacing(run: TunedRun) -> str:
    return "those that the sweep lists" if run.base.sweep.rates else "an octave (a factor 2) apart"


def _cost(run: TunedRun) -> Section:
    runs, spent = run.base.row.runs, run.base.row.seconds
    whole = runs * run.big.seconds
    rows = (
        ("what", "runs", "hours"),
        ("sweep of the base", f"{runs}", _hours(spent)),
        ("the big run", "1", _hours(run.big.seconds)),
        ("together", f"{runs + 1}", _hours(spent + run.big.seconds)),
        ("a sweep of the big model", f"{runs}", _hours(whole)),
    )
    return Section(
        "Cost",
        (
            f"The base was trained {runs} times in {_hours(spent)} hours, the big model once in "
            f"{_hours(run.big.seconds)}.",
            f"A sweep of the big model at as many rates and seeds would have cost {_hours(whole)} "
            "hours, at the time of the big run each.",
        ),
        table=rows,
    )


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.2f}" if seconds >= 360 else f"{seconds / 3600:.4f}"


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
        f"{len(run.multipliers) - len(alone)} of {len(run.multipliers)} tensors were matched to "
        f"{len(run.sources)} recordings of the base: {', '.join(run.sources)}.",
        *((f"Left at the base's rate: {', '.join(alone)}.",) if alone else ()),
        "The dry run before the training said:",
    )
    return Section("What was matched", sentences, table=tuple(rows), printed=run.dry_run)


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
svg { width: 100%; max-width: 44rem; height: auto; font: 12px system-ui, sans-serif; }
</style>
</head>
<body>
{body}
</body>
</html>
"""
