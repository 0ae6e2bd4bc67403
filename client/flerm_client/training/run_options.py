"""What a user asks of a run: all arguments of `FLeRM.record` or `FLeRM.match` as one value."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

from torch import nn
from torch.optim import Optimizer

from flerm_client.training.run_instructions import RunInstructions
from flerm_core.errors import InvalidInput
from flerm_core.matching.targets import Targets
from flerm_core.measure.measured_model import Output
from flerm_core.measure.sharpness import Loss
from flerm_core.trajectory import Trajectory

TargetSource = Mapping[str, float] | Targets | Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The arguments that `record` and `match` share. FLeRM documents each, and has the defaults."""

    model: nn.Module
    optimizer: Optimizer | Sequence[Optimizer]
    probe: Iterable[Any]
    family: str
    lr: float | str | None
    output: Output | None
    registry: str | None
    token: str | None
    seed: int
    every: int | None
    warmup: int
    samples: int
    start: int | None
    estimator: str | None
    weight_decay: str
    sharpness: Loss | None
    role: str
    variant: str
    tags: Mapping[str, str] | None
    config: Mapping[str, Any] | None
    batch_size: int | None
    omit: Sequence[str]
    bands: Mapping[str, str] | None
    blocks: str | Sequence[str] | None
    process_group: Any
    spool: str | os.PathLike[str] | None

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Self:
        """From the local names of a public function that has just been called.

        The function's signature is thus the only list of arguments beside the fields here; a test
        compares the two.
        """
        return cls(**{name: value for name, value in arguments.items() if name != "cls"})

    @property
    def block_axes(self) -> tuple[str, ...]:
        """`blocks` as a tuple; empty where the axes are to be found from the names."""
        return (self.blocks,) if isinstance(self.blocks, str) else tuple(self.blocks or ())


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordOptions(RunOptions):
    """The arguments of `FLeRM.record`."""

    every: int
    start: int
    estimator: str
    output_weight: str | None
    output_bias: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchOptions(RunOptions):
    """The arguments of `FLeRM.match`."""

    targets: TargetSource | None
    record_every: int | None
    dry_run: bool
    depth: str
    policy: str
    clock: str
    total_steps: int | None
    clamp: tuple[float, float]
    timeout: float
    source_tags: Mapping[str, str] | None


_ALLOWED = {each.name for kind in (RecordOptions, MatchOptions) for each in fields(kind)} - {
    *("model", "optimizer", "targets", "record_every"),
    # Of these the environment alone decides.
    *("registry", "role", "variant", "dry_run"),
}


def instructed(keywords: Mapping[str, Any]) -> RunInstructions | None:
    """What the environment says; None where it says nothing.

    Raises `InvalidInput` for a keyword that no instruction could use, also where there are none.
    """
    unknown = sorted(set(keywords) - _ALLOWED)
    if unknown:
        raise InvalidInput(
            f"FLeRM.auto takes no {', '.join(unknown)}; it takes {', '.join(sorted(_ALLOWED))}"
        )
    return RunInstructions.from_environment()


def own_keywords(instructions: RunInstructions, given: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of the method that `instructions` name, out of those `given` for any method."""
    options: type[RunOptions] = RecordOptions
    if instructions.method == "match":
        options = MatchOptions
        # `every` counts the steps between measurements. `match` calls these `record_every`.
        given = {("record_every" if name == "every" else name): given[name] for name in given}
    known = {each.name for each in fields(options)}
    return instructions.keywords({name: given[name] for name in given if name in known})
