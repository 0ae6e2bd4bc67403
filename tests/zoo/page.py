"""docs/models.md: the table of all that the zoo tried."""

from __future__ import annotations

import datetime
import math
from importlib.metadata import version
from pathlib import Path

from tests.zoo.architecture import Architecture
from tests.zoo.trial import DEVIATIONS, EXAMPLE, Outcome

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
PACKAGES = ("torch", "transformers", "timm", "torchvision", "diffusers", "peft")

TEXT = """# Models

This page says on which architectures FLeRM was tried, and what came of it.
It was made by `make zoo` on {date}, with {versions}.

Each architecture is a tiny model with random weights, in float32 on one CPU.
One AdamW step is recorded and compared with exact FSLRs.
These come from central differences in float64, which use none of FLeRM's code.

- **tensors**: how many tensors the step moved, and how many of these were measured, where fewer.
  A tensor that does not move the outputs yet, such as LoRA's A, is unmeasured at the first step.
- **estimator**: the one in use after the first measurement.
  The default, `example`, was asked for everywhere.
  Where it cannot tell examples apart, it has one sample a draw, and is noisier.
- **largest error**: the largest factor between a measured and an exact FSLR.
  A measurement of 32 draws of 8 examples each is noisy by some percent.
  Where examples share statistics, 8 draws were taken.
- **in deviations**: the largest error in standard deviations of that noise.
  Up to {deviations:.0f} is promised for `example`; the other estimators are biased.
- **identical**: whether three recorded steps are bit for bit three unrecorded ones.
  Losses, weights, buffers and random numbers are compared.
- **match by width, by depth**: whether a model twice as wide, or with twice as many blocks, runs
  every tensor at target divided by measured FSLR.
  "–" stands where the architecture is not scaled in this way.

What autograd takes as a constant (under `torch.no_grad`, detached) is a constant here too.
Complex parameters are refused when a run begins, with a sentence that names them.
Nested tensors of torch are not measured: the run goes on, and a warning says so.

{summary}

{head}
{rows}
{untried}"""

HEAD = (
    "architecture",
    "package",
    "tensors",
    "estimator",
    "largest error",
    "in deviations",
    "identical",
    "match by width",
    "by depth",
    "remarks",
)


def page(outcomes: list[Outcome], untried: list[Architecture]) -> str:
    """The page as Markdown."""
    holds = sum(not each.broken for each in outcomes)
    by_example = sum(each.estimator == EXAMPLE for each in outcomes)
    installed = {each.package for each in outcomes}
    found = [f"{name} {version(name).split('+')[0]}" for name in PACKAGES if name in installed]
    left_out = ", ".join(f"{each.name} ({each.package})" for each in untried)
    return TEXT.format(
        date=datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        versions=", ".join(found),
        deviations=DEVIATIONS,
        summary=f"{holds} of {len(outcomes)} architectures hold all that is promised; "
        f"{by_example} were measured by `example` with a sample for each example.",
        head=f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}",
        rows="\n".join(_row(each) for each in outcomes),
        untried=f"\nNot tried when this page was made: {left_out}.\n" if untried else "",
    )


def _row(outcome: Outcome) -> str:
    tensors = str(outcome.tensors)
    if outcome.measured != outcome.tensors:
        tensors = f"{outcome.measured} of {outcome.tensors}"
    identical = {True: "yes", False: "**no**", None: "differs without FLeRM too"}
    cells = [
        outcome.name,
        outcome.package,
        tensors,
        f"`{outcome.estimator}`" if outcome.estimator else "–",
        _number(outcome.ratio, "{:.2f} ×"),
        _number(outcome.deviations, "{:.1f}"),
        "–" if outcome.error and outcome.identical is None else identical[outcome.identical],
        *(_matched(outcome, scale) for scale in ("width", "depth")),
        _remarks(outcome),
    ]
    return f"| {' | '.join(cells)} |"


def _number(value: float, form: str) -> str:
    return "–" if math.isnan(value) else form.format(value)


def _matched(outcome: Outcome, scale: str) -> str:
    said = outcome.matched.get(scale, "–")
    return said if said in ("yes", "–") else "**no**"


def _remarks(outcome: Outcome) -> str:
    """What is broken, and what FLeRM itself said."""
    said = [*outcome.broken, *outcome.warned]
    return "; ".join(_escaped(each) for each in said)


def _escaped(text: str) -> str:
    """Text that Markdown shows as written, in one cell."""
    short = text if len(text) <= 240 else text[:239] + "…"
    return short.translate({ord(each): f"&#{ord(each)};" for each in "|*_<>[]`"})
