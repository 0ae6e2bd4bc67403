"""docs/models.md: the table of all that the zoo tried."""

from __future__ import annotations

import datetime
import math
import re
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
FLeRM records one AdamW step of it.
The measured FSLRs are then compared with exact ones, which a second program computes by central \
differences in float64.

- **tensors**: the number of tensors that the step changed.
  "4 of 8" means that 4 of 8 such tensors have an FSLR.
  The others do not change the outputs yet, as LoRA's A while its B is 0.
- **estimator**: the estimator after the first measurement.
  Every run asked for the default, `example`.
  Where `example` cannot tell the examples of a batch apart, it takes one sample a draw, and its \
FSLRs are noisier.
- **largest error**: the largest factor between a measured FSLR and the exact one, over all tensors.
  Each measurement has 32 draws of 8 examples, and its random error is some percent.
  Where examples depend on each other, it has 8 draws, and its random error is larger.
- **in deviations**: the largest error, divided by the standard deviation of the random error.
  For `example`, at most {deviations:.0f} is promised.
- **identical**: whether three recorded steps and three unrecorded steps end with the same \
losses, weights, buffers and random numbers, bit for bit.
- **match by width, by depth**: whether a matched model of twice the width, or with twice as many \
blocks, trains every tensor at the learning rate that Eq. 19 gives it.
  A dash stands where the architecture was not scaled in this way.

Values that autograd treats as constants (those under `torch.no_grad`, and detached ones) are \
constants in these FSLRs too.
A model with complex parameters is refused when a run begins, by a sentence that names them.
A model that returns a nested tensor of torch is not measured: the run goes on, and a warning \
says so.

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
    said = [*outcome.broken, *(_in_short(each) for each in outcome.warned)]
    return "; ".join(_escaped(each) for each in said)


def _in_short(warning: str) -> str:
    """A warning of FLeRM; of one about examples that share statistics, the module alone."""
    mixing = re.search(r"one sample a draw .* because (.+? \(\w+\)): its rows", warning)
    return f"examples are mixed from {mixing[1]} on" if mixing else warning


def _escaped(text: str) -> str:
    """Text that Markdown shows as written, in one cell."""
    short = text if len(text) <= 240 else text[:239] + "…"
    return short.translate({ord(each): f"&#{ord(each)};" for each in "|*_<>[]`"})
