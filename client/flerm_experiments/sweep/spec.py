"""What a sweep compares: one base model, and cells of a scale and a variant each. Read from TOML; presets lie in `presets/`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

from flerm_core.errors import InvalidInput, NotFound
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
    "matched-joint": {"mode": "match", "depth_rule": "joint"},
    "matched-coherent": {"mode": "match", "depth_rule": "coherent"},
    "matched-root": {"mode": "match", "depth_rule": "root"},
    "matched-kronecker": {"mode": "match", "estimator": "kronecker"},
    "matched-exact": {"mode": "match", "estimator": "exact"},
    "matched-independent": {"mode": "match", "weight_decay": "independent"},
    "equal": {"mode": "match", "targets": "equal"},
    "equal-throughout": {"mode": "match", "targets": "equal-throughout"},
}
"""Variant to the fields of its training jobs. What does not match is recorded, so that every run is in the registry."""

PERIODIC = ("matched-periodic", "matched-fraction", "matched-tokens")
"""Those that match again and again, as often in a run as the base is measured in its own; the others match once."""

MEASURED: dict[str, Mapping[str, Any]] = {
    "": {},
    "kronecker": {"estimator": "kronecker"},
    "exact": {"estimator": "exact"},
    "independent": {"weight_decay": "independent"},
}
"""Ways to record a base, for targets of the same kind: name to the fields of its jobs. Its losses are the same by all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One curve of loss against learning rate: a member of the family, trained in one way, `steps` times as long as the
    base."""

    scale: Scale = field(default_factory=Scale)
    variant: str = "plain"
    steps: int = 1
    seeds: int | None = field(default=None, compare=False)
    """How many of the sweep's seeds it is trained with; None: all."""

    @property
    def matches(self) -> bool:
        """Whether its jobs take the base's recordings."""
        return (
            VARIANTS[self.variant].get("mode") == "match"
            and "targets" not in VARIANTS[self.variant]
        )

    @property
    def shares_base(self) -> bool:
        """Whether the base's best rate means the same to it. Not to equal FSLRs, which set the scale of the rates anew."""
        return "targets" not in VARIANTS[self.variant]

    @property
    def measured(self) -> str:
        """How it, and the base recordings it takes, are measured: a key of `MEASURED`."""
        chosen = {
            key: value
            for key, value in VARIANTS[self.variant].items()
            if key in ("estimator", "weight_decay")
        }
        return next(name for name, how in MEASURED.items() if how == chosen)

    @property
    def size(self) -> str:
        """Its scale, as a table names it, and how many times as long it is trained: `width ×4, steps ×2`."""
        longer = [] if self.steps == 1 else [f"steps ×{self.steps}"]
        shape = [] if longer and self.scale == Scale() else [self.scale.label]
        return ", ".join([*shape, *longer])

    @property
    def label(self) -> str:
        """With its variant: `width ×4, matched`."""
        return f"{self.size}, {self.variant}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A grid of cells over one base.

    `centre`: the learning rate where the search for the base's optimum begins; the rates tried are it times whole powers of
    two. `base_seeds`: how many seeds the base is recorded with, at every rate that a cell is matched at; `seeds`: with how many
    each cell is trained that does not say fewer. `every`: steps between measurements of the base. `family`: where all goes in
    the registry. Raises `InvalidInput` for a field out of its range.
    """

    name: str
    workload: str
    centre: float
    cells: tuple[Cell, ...]
    title: str = ""
    family: str = ""
    steps: int = 300
    optimizer: str = "adam"
    schedule: str = "constant"
    base_seeds: int = 4
    seeds: int = 1
    every: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.centre < float("inf"):
            raise InvalidInput(
                f"centre is {self.centre}, but it must be a learning rate, positive and finite"
            )
        for name in ("base_seeds", "seeds", "every"):
            if getattr(self, name) < 1:
                raise InvalidInput(
                    f"{name} is {getattr(self, name)}, but it must be a whole number of at least 1"
                )

    def part(self, which: str) -> Sweep:
        """The base alone (`base`), or with it the cell of that number, counted from 0: what one job of a cluster does."""
        if which == "base":
            return replace(self, cells=())
        if not which.isdecimal() or int(which) >= len(self.cells):
            raise InvalidInput(
                f"cell is {which!r}, but it must be base or a number from 0 to {len(self.cells) - 1}"
            )
        return replace(self, cells=(self.cells[int(which)],))

    def seeds_of(self, cell: Cell) -> int:
        """How many seeds `cell` is trained with."""
        return self.seeds if cell.seeds is None else min(cell.seeds, self.seeds)

    @property
    def family_name(self) -> str:
        """The family asked for; by default the workload's name."""
        return self.family or self.workload

    def tags(self, times: int = 1) -> dict[str, str]:
        """What tells recordings of this sweep's kind, `times` its steps long, from others of the family: targets may come only
        from runs of the base's kind."""
        return {"steps": str(times * self.steps), "schedule": self.schedule}


def presets() -> list[str]:
    """Names of the sweeps that come with the package."""
    return sorted(
        each.name.removesuffix(".toml")
        for each in _folder().iterdir()
        if each.name.endswith(".toml")
    )


def load(what: str) -> Sweep:
    """The preset called `what`, or the sweep in the TOML file at that path.

    Raises `NotFound` for neither, `InvalidInput` for a file that is no sweep, naming the field.
    """
    name = what
    if what in presets():
        text = (_folder() / f"{what}.toml").read_text("utf-8")
    else:
        path = Path(what)
        if not path.is_file():
            raise NotFound(
                f"sweep: {what!r} is neither a file nor a preset; presets are {', '.join(presets())}"
            )
        name, text = path.stem, path.read_text("utf-8")
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"sweep: {what} is not TOML ({error})") from error
    return parse(content, name)


def parse(content: Mapping[str, Any], name: str) -> Sweep:
    """A sweep from what its TOML file says. Cells are tables `[[cell]]`: a scale, and `variants` to train it in."""
    known = {each.name for each in fields(Sweep)} - {"name", "cells"}
    unknown = sorted(set(content) - known - {"cell"})
    if unknown:
        raise InvalidInput(
            f"{unknown[0]}: not a field of a sweep; allowed are {', '.join(sorted(known))} and [[cell]]"
        )
    for required in ("workload", "centre"):
        if required not in content:
            raise InvalidInput(f"{required}: sweep {name!r} does not say it, but it must")
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
                f"cell.{key}: not a field of a cell; allowed are {allowed}, seeds, steps and variants"
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
