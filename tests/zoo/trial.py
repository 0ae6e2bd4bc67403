"""What is tried on an architecture: a recorded step against exact FSLRs, and matches."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from flerm_client import FLeRM
from flerm_core.parameter_names import canonical
from tests.zoo.architecture import Architecture
from tests.zoo.reference import Reference

RATE = 1e-3
DRAWS = 32
"""Draws of the measurement, on as many batches."""
COUPLED_DRAWS = 8
"""The same where a batch is one unit: the exact FSLR then costs a forward for each batch."""
NEGLIGIBLE = 1e-4
"""A tensor that moves the outputs less than this times the largest is rounding noise."""
DEVIATIONS = 6.0
"""Of some 3,000 tensors, none is by chance as many standard deviations off."""
ROUNDING = 0.02
"""The relative error of a squared FSLR in float32."""
GRID = 1 / 32 + 1e-3
"""Multipliers are rounded to a sixteenth of an octave."""


EXAMPLE, ONE_SAMPLE = "example", "example, one sample a draw"


@dataclass
class Outcome:
    """One architecture's row of the table.

    estimator: the one in use after the first measurement, as the table shows it.
    tensors, measured: how many tensors of the model one step moves, and how many of these have an
    FSLR. ratio: the largest factor between a measured and an exact FSLR. deviations: the largest
    distance in standard deviations of one measurement, of the tensor `worst`. missed: the tensors
    that move the outputs and are unmeasured. identical: whether losses and weights are bit for bit
    those of an unrecorded run; None where two unrecorded runs differ. matched: by scale, "yes" or
    what went wrong.
    """

    name: str
    package: str
    estimator: str = ""
    tensors: int = 0
    measured: int = 0
    ratio: float = math.nan
    deviations: float = math.nan
    worst: str = ""
    missed: list[str] = field(default_factory=list)
    identical: bool | None = None
    matched: dict[str, str] = field(default_factory=dict)
    warned: list[str] = field(default_factory=list)
    error: str = ""
    seconds: float = 0.0

    @property
    def broken(self) -> list[str]:
        """What of the promise does not hold."""
        if self.error:
            return [f"ends training: {self.error}"]
        found = [f"unmeasured: {', '.join(self.missed)}"] if self.missed else []
        # Other estimators are biased, and say so.
        if self.estimator in (EXAMPLE, ONE_SAMPLE) and not self.deviations <= DEVIATIONS:
            found.append(f"{self.worst} is {self.deviations:.1f} standard deviations off")
        if self.identical is False:
            found.append("losses or weights differ from an unrecorded run")
        return found + [f"{scale}: {said}" for scale, said in self.matched.items() if said != "yes"]


def try_architecture(architecture: Architecture) -> Outcome:
    """Never raises: what goes wrong is in the outcome."""
    outcome = Outcome(architecture.name, architecture.package)
    started = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            _compare(architecture, outcome, caught)
            outcome.identical = _identical(architecture)
            outcome.matched = _matched(architecture)
        except Exception as error:
            outcome.error = _sentence(error)
    outcome.warned = sorted(
        {str(each.message) for each in caught if "flerm" in str(each.message).lower()
         or "measuring by" in str(each.message) or "one sample a draw" in str(each.message)}
    )  # fmt: skip
    outcome.seconds = time.process_time() - started
    return outcome


def _sentence(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _compare(
    architecture: Architecture, outcome: Outcome, caught: list[warnings.WarningMessage]
) -> None:
    """Fills in estimator, tensors and errors. caught: the warnings so far, also of this call."""
    draws = COUPLED_DRAWS if architecture.couples_examples else DRAWS
    batches = architecture.batches(draws, seed=1)
    model = architecture.model()
    old = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    flerm = FLeRM.record(
        model, optimizer, probe=batches, family="zoo", output=architecture.output, warmup=draws
    )
    _train(architecture, model, optimizer, architecture.batches(1, seed=2))
    one_sample = any(ONE_SAMPLE.partition(", ")[2] in str(each.message) for each in caught)
    outcome.estimator = ONE_SAMPLE if one_sample else flerm.estimator
    flerm.close("interrupted")
    changes = {n: (p.detach() - old[n]) / RATE for n, p in model.named_parameters()}
    changes = {name: change for name, change in changes.items() if change.any()}
    fslr = flerm.fslr
    outcome.tensors = len(changes)
    outcome.measured = sum(canonical(name) in fslr for name in changes)
    reference = Reference(architecture, model, batches)
    exact = {name: reference.exact(name, change) for name, change in changes.items()}
    largest = max(each.fslr for each in exact.values())
    found = []
    for name, each in exact.items():
        if each.fslr <= NEGLIGIBLE * largest:
            continue
        if canonical(name) not in fslr:
            outcome.missed.append(name)
            continue
        ratio = fslr[canonical(name)] / each.fslr
        factor = max(ratio, 1 / ratio) if ratio else math.inf
        noise = each.one_sample if one_sample else each.deviation
        found.append((deviations(ratio, noise), factor, name))
    if found:
        outcome.deviations, _, outcome.worst = max(found)
        outcome.ratio = max(factor for _, factor, _ in found)


def deviations(ratio: float, noise: float) -> float:
    """How many standard deviations measured / exact FSLR is off.

    noise: the relative standard deviation of the squared FSLR. A sum of squares has a cube root
    that is nearly normal (Wilson and Hilferty), of mean 1 - noise²/9 and deviation noise/3.
    """
    off = ratio ** (2 / 3) - (1 - noise**2 / 9)
    return max(abs(off) - ROUNDING / 3, 0) / (noise / 3)


def _train(
    architecture: Architecture,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: list[Any],
) -> list[Tensor]:
    """One step a batch. Returns the losses, of which none is at its least at the beginning."""
    losses = []
    for number, batch in enumerate(batches):
        optimizer.zero_grad()
        outputs = architecture.output(model, batch)
        toward = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(number))
        loss = (outputs - toward).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def _identical(architecture: Architecture) -> bool | None:
    first, again = _run(architecture, record=False), _run(architecture, record=False)
    if not _same(first, again):
        return None
    return _same(first, _run(architecture, record=True))


def _run(architecture: Architecture, *, record: bool) -> list[Tensor]:
    """Losses, weights and buffers of three steps, of which the first and the third are measured."""
    model = architecture.model()
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    flerm = None
    if record:
        flerm = FLeRM.record(
            model, optimizer, probe=architecture.batches(4, seed=1), family="zoo",
            output=architecture.output, warmup=2, every=2,
        )  # fmt: skip
    torch.manual_seed(6)
    losses = _train(architecture, model, optimizer, architecture.batches(3, seed=5))
    if flerm is not None:
        flerm.close()
    return [*losses, *(p.detach() for p in model.parameters()), *model.buffers(), torch.rand(1)]


def _same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def _matched(architecture: Architecture) -> dict[str, str]:
    """By scale, "yes" where all that the bigger model's step moves runs at target / measured."""
    if not architecture.scales:
        return {}
    model = architecture.model()
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    with FLeRM.record(
        model, optimizer, probe=architecture.batches(8, seed=1), family="zoo",
        output=architecture.output,
    ) as base:  # fmt: skip
        _train(architecture, model, optimizer, architecture.batches(2, seed=2))
    sizes = {"width": (2, 1), "depth": (1, 2)}
    found = {}
    for scale in architecture.scales:
        try:
            found[scale] = _match(architecture, *sizes[scale], base)
        except Exception as error:
            found[scale] = _sentence(error)
    return found


def _match(architecture: Architecture, width: int, depth: int, base: FLeRM) -> str:
    model = architecture.model(width, depth)
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    old = {name: p.detach().clone() for name, p in model.named_parameters()}
    flerm = FLeRM.match(
        model, optimizer, probe=architecture.batches(8, seed=1), family="zoo",
        output=architecture.output, targets=base.trajectory,
    )  # fmt: skip
    # A tensor behind a zero, such as LoRA's A, is matched at the second step.
    _train(architecture, model, optimizer, architecture.batches(2, seed=2))
    flerm.close("interrupted")
    measured, targets = flerm.matched_fslr, flerm.targets
    if not measured:
        return "nothing was matched"
    for name, m in flerm.multipliers.items():
        if name in measured and name in targets and m != 1.0:
            off = math.log2(m * measured[name] / targets[name])
            if abs(off) > GRID:
                return f"{name} is {off:+.2f} octaves from its target"
    changed = {canonical(n) for n, p in model.named_parameters() if not torch.equal(p, old[n])}
    unmatched = [n for n in base.fslr if n in changed and n not in measured]
    return f"unmatched: {', '.join(unmatched)}" if unmatched else "yes"
