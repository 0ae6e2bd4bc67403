"""What a sweep compares: one base model, and cells of one scale and one variant each.

A sweep is read from a TOML file. The presets lie in `presets/`.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

from flerm_core.errors import InvalidInput, NotFound
from flerm_core.records.recording import same_lr
from flerm_experiments.sweep.command import Command, CommandScale
from flerm_experiments.sweep.command_file import command_sweep
from flerm_experiments.sweep.lr_search import EVERYWHERE
from flerm_experiments.workloads.base import Scale

VARIANTS: dict[str, Mapping[str, Any]] = {
    "plain": {},
    "mup": {"parametrization": "mup"},
    "ntk": {"parametrization": "ntk"},
    "matched": {"mode": "match"},
    "matched-periodic": {"mode": "match"},
    "matched-fraction": {"mode": "match", "clock": "fraction"},
    "matched-tokens": {"mode": "match", "clock": "tokens"},
    "matched-split": {"mode": "match", "depth_rule": "split"},
    "matched-coherent": {"mode": "match", "depth_rule": "coherent"},
    "matched-root": {"mode": "match", "depth_rule": "root"},
    "matched-kronecker": {"mode": "match", "estimator": "kronecker"},
    "matched-exact": {"mode": "match", "estimator": "exact"},
    "matched-independent": {"mode": "match", "weight_decay": "independent"},
    "plain-sqrt": {"batch_rule": "sqrt"},
    "plain-sqrt-moments": {"batch_rule": "sqrt-moments"},
    "plain-moments": {"batch_rule": "moments"},
    "plain-linear": {"batch_rule": "linear"},
    "matched-sqrt": {"mode": "match", "batch_rule": "sqrt"},
    "matched-batch": {"mode": "match", "batch_rule": "followed"},
    "equal": {"mode": "match", "targets": "equal"},
    "equal-throughout": {"mode": "match", "targets": "equal-throughout"},
}
"""Variant to the fields of its training jobs. Runs that do not match are recorded, so that every
run is in the registry."""

PERIODIC = ("matched-periodic", "matched-fraction", "matched-tokens")
"""Variants that match repeatedly: as often in a run as the base is measured in its own. The other
variants match once."""

BASE_MEASUREMENTS: dict[str, Mapping[str, Any]] = {
    "": {},
    "kronecker": {"estimator": "kronecker"},
    "exact": {"estimator": "exact"},
    "independent": {"weight_decay": "independent"},
}
"""How a base can be measured, as its targets and the matched run must agree in that: name to the
fields of the base's jobs. The base's losses do not depend on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One curve of loss against learning rate: a scale, trained by one variant.

    steps: how many times as long as the base it is trained.
    seeds: how many of the sweep's seeds it is trained with; None for all.
    """

    scale: Scale | CommandScale = field(default_factory=Scale)
    variant: str = "plain"
    steps: int = 1
    seeds: int | None = field(default=None, compare=False)

    @property
    def matches(self) -> bool:
        """Whether its jobs take their targets from the base's recordings."""
        return self.shares_base_lr and VARIANTS[self.variant].get("mode") == "match"

    @property
    def shares_base_lr(self) -> bool:
        """Whether a learning rate means the same to this cell as to the base.

        With targets that are equal for all tensors it means something else, because rates are then
        on another scale.
        """
        return "targets" not in VARIANTS[self.variant]

    @property
    def base_measurement(self) -> str:
        """How the cell and the base recordings behind it are measured: of `BASE_MEASUREMENTS`."""
        chosen = {
            key: value
            for key, value in VARIANTS[self.variant].items()
            if key in ("estimator", "weight_decay")
        }
        return next(name for name, how in BASE_MEASUREMENTS.items() if how == chosen)

    @property
    def size(self) -> str:
        """Scale and length as a table names them: `width ×4, steps ×2`."""
        longer = [] if self.steps == 1 else [f"steps ×{self.steps}"]
        shape = [] if longer and not self.scale.differing else [self.scale.label]
        return ", ".join([*shape, *longer])

    @property
    def label(self) -> str:
        """Size and variant: `width ×4, matched`."""
        return f"{self.size}, {self.variant}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """One base model and the cells that are compared with it.

    name: that of the preset or the file.
    initial_lr: the learning rate where the search for the base's optimum begins; all rates are this
        one times a power of 2^(1 / rates_per_octave).
    rates: all learning rates, ascending, where there is no search.
    lr_min, lr_max: the bounds of the search.
    rates_per_octave: how many rates of the search are in an octave.
    title: the heading of its table.
    family: where its recordings go in the registry; empty for the workload's name.
    steps: optimiser steps of the base.
    optimizer, schedule: names of `OPTIMIZERS` and `SCHEDULES`.
    base_seeds: seeds that the base is recorded with, at every rate that a cell is matched at.
    seeds: seeds of each cell that does not ask for fewer.
    every: steps between measurements of the base.
    hold_norms: as in `Job`, for the base and all cells.

    What is trained is either a workload (a name of `WORKLOADS`) or a command.

    A command has its own steps, optimizer and schedule.

    Raises `InvalidInput` for a field out of its range.
    """

    name: str
    initial_lr: float
    cells: tuple[Cell, ...]
    workload: str = ""
    command: Command | None = None
    rates: tuple[float, ...] = ()
    lr_min: float = 0.0
    lr_max: float = math.inf
    rates_per_octave: int = 1
    title: str = ""
    family: str = ""
    steps: int = 300
    optimizer: str = "adam"
    schedule: str = "constant"
    base_seeds: int = 4
    seeds: int = 1
    every: int = 100
    hold_norms: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.initial_lr < float("inf"):
            raise InvalidInput(
                f"initial_lr is {self.initial_lr}, but it must be a learning rate, positive and "
                "finite"
            )
        for name in ("base_seeds", "seeds", "every", "rates_per_octave"):
            if getattr(self, name) < 1:
                raise InvalidInput(
                    f"{name} is {getattr(self, name)}, but it must be a whole number of at least 1"
                )

    def lr_at(self, lr_index: int) -> float:
        """The learning rate `lr_index` steps of the grid above the initial one."""
        if self.rates:
            return self.rates[lr_index]
        return float(self.initial_lr * 2.0 ** (lr_index / self.rates_per_octave))

    def index_of(self, lr: float) -> int | None:
        """The inverse of `lr_at`; None for a rate that this sweep does not train."""
        if self.rates:
            return next((at for at, each in enumerate(self.rates) if same_lr(each, lr)), None)
        place = self._grid_steps(lr)
        return round(place) if abs(place - round(place)) <= 1e-6 else None

    def _grid_steps(self, lr: float) -> float:
        """How many steps of the search's grid `lr` lies above the initial rate."""
        return self.rates_per_octave * math.log2(lr / self.initial_lr)

    @property
    def allowed_indices(self) -> range:
        """The rates that may be trained."""
        if self.rates:
            return range(len(self.rates))
        bounds = [EVERYWHERE.start, EVERYWHERE.stop - 1]
        if self.lr_min > 0:
            bounds[0] = math.ceil(self._grid_steps(self.lr_min) - 1e-6)
        if self.lr_max < math.inf:
            bounds[1] = math.floor(self._grid_steps(self.lr_max) + 1e-6)
        return range(bounds[0], bounds[1] + 1)

    def part(self, which: str) -> Sweep:
        """What one job of a cluster does: the base alone (`base`), or the base and one cell.

        which: `base`, or a cell's number, counted from 0.

        Raises `InvalidInput` for another.
        """
        if which == "base":
            return replace(self, cells=())
        if not which.isdecimal() or int(which) >= len(self.cells):
            raise InvalidInput(
                f"cell is {which!r}, but it must be base or a number from 0 to "
                f"{len(self.cells) - 1}"
            )
        return replace(self, cells=(self.cells[int(which)],))

    def seeds_of(self, cell: Cell) -> int:
        """The number of seeds that `cell` is trained with."""
        return self.seeds if cell.seeds is None else min(cell.seeds, self.seeds)

    @property
    def family_name(self) -> str:
        """The family of the recordings; by default the workload's name, or the sweep's.

        A base with held norms gives no targets to another sweep, so it has a family of its own.
        """
        return self.family or self.workload + ("-held" if self.hold_norms else "")

    def tags(self, times: int = 1) -> dict[str, str]:
        """The tags of recordings that are `times` as long as this sweep's base.

        Targets may come only from base recordings with the base's own tags.
        """
        if self.command is not None:
            return {"sweep": self.command.base_digest}
        return {"steps": str(times * self.steps), "schedule": self.schedule}


def presets() -> list[str]:
    """The names of the sweeps that come with the package."""
    return sorted(
        each.name.removesuffix(".toml")
        for each in _folder().iterdir()
        if each.name.endswith(".toml")
    )


def load(what: str) -> Sweep:
    """The preset called `what`, or the sweep in the TOML file at that path.

    Raises `NotFound` for neither, `InvalidInput` for a file that is no sweep, naming the field.
    """
    name, directory = what, Path.cwd()
    if what in presets():
        text = (_folder() / f"{what}.toml").read_text("utf-8")
    else:
        path = Path(what)
        if not path.is_file():
            raise NotFound(
                f"sweep: {what!r} is neither a file nor a preset; presets are "
                f"{', '.join(presets())}"
            )
        name, directory = path.stem, path.resolve().parent
        text = path.read_text("utf-8")
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"sweep: {what} is not TOML ({error})") from error
    return parse(content, name, directory)


def parse(content: Mapping[str, Any], name: str, directory: Path | None = None) -> Sweep:
    """A sweep from the content of its TOML file; `name` is that of the file, which lies in
    `directory`, by default the working directory.

    Each table `[[cell]]` has a scale's fields and the `variants` to train there, by default plain
    and matched. Raises `InvalidInput` for an unknown or missing field or a value out of range.
    """
    if "command" in content:
        found, rows = command_sweep(content, name, directory or Path.cwd())
        chosen = [Cell(scale=scale, variant=how, seeds=seeds) for scale, how, seeds in rows]
        return Sweep(name=name, cells=tuple(dict.fromkeys(chosen)), **found)
    known = {each.name for each in fields(Sweep)} - {"name", "cells", "command", "rates"}
    unknown = sorted(set(content) - known - {"cell"})
    if unknown:
        raise InvalidInput(
            f"{unknown[0]}: not a field of a sweep; allowed are {', '.join(sorted(known))} and "
            "[[cell]]"
        )
    if "workload" not in content:
        raise InvalidInput(
            f"workload: sweep {name!r} does not say it, but it must say either a workload or a "
            "command"
        )
    if "initial_lr" not in content:
        raise InvalidInput(f"initial_lr: sweep {name!r} does not say it, but it must")
    cells = [cell for table in content.get("cell", []) for cell in _cells(table)]
    if not cells:
        raise InvalidInput(
            f"cell: sweep {name!r} has none, but it must have at least one to compare with the base"
        )
    return Sweep(
        name=name,
        cells=tuple(dict.fromkeys(cells)),
        **{key: content[key] for key in content if key != "cell"},
    )


def _cells(table: Mapping[str, Any]) -> list[Cell]:
    scales = {each.name for each in fields(Scale)}
    variants = table.get("variants", ["plain", "matched"])
    for key in table:
        if key not in {*scales, "variants", "seeds", "steps"}:
            allowed = ", ".join(sorted(scales))
            raise InvalidInput(
                f"cell.{key}: not a field of a cell; allowed are {allowed}, seeds, steps and "
                "variants"
            )
    for variant in variants:
        if variant not in VARIANTS:
            raise InvalidInput(
                f"cell.variants: {variant!r} is not one; allowed are {', '.join(VARIANTS)}"
            )
    for key in ("seeds", "steps"):
        if key in table and not (
            type(table[key]) is int and table[key] >= 1
        ):  # true is an int, too
            raise InvalidInput(
                f"cell.{key} is {table[key]!r}, but it must be a whole number of at least 1"
            )
    scale = Scale(**{key: value for key, value in table.items() if key in scales})
    seeds, steps = table.get("seeds"), table.get("steps", 1)
    return [Cell(scale=scale, variant=variant, steps=steps, seeds=seeds) for variant in variants]


def _folder() -> Any:
    return resources.files("flerm_experiments.sweep") / "presets"
