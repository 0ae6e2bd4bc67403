"""A model against the targets it would be matched to: what `FLeRM.match(dry_run=True)` and `flerm check` say of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flerm_core.matching.match import Multipliers, multipliers
from flerm_core.matching.targets import Targets
from flerm_core.records.comparability import settings_in_force
from flerm_core.records.recording import EstimatorSettings

_WIDE = 0.5  # a spread of ln FSLR over seeds beyond which a target is a rough guess
_KINDS = (
    ("unmeasured", "no update or no target; they keep multiplier 1"),
    ("noisy", "an FSLR too small to be more than noise; they keep multiplier 1"),
    ("clamped", "their multiplier would be beyond the clamp"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchReport:
    """Targets beside what was measured. `targets`, `spread` (of ln FSLR over seeds, NaN for one seed) and `measured` go by
    tensor or role, FSLRs in output units per unit learning rate; `outcome` None: nothing was measured yet."""

    family: str
    lr: float
    targets: Mapping[str, float]
    spread: Mapping[str, float] = field(default_factory=dict)
    seeds: int = 0
    sources: tuple[str, ...] = ()
    digest: str = ""
    mismatches: tuple[str, ...] = ()
    measured: Mapping[str, float] = field(default_factory=dict)
    outcome: Multipliers | None = None

    @classmethod
    def of(
        cls,
        found: Targets,
        measured: Mapping[str, float] | None,
        *,
        step: float | None = None,
        mismatches: tuple[str, ...] = (),
    ) -> MatchReport:
        """Of a registry's answer with `measured` FSLRs, both at `step` (None: the first row)."""
        row = 0 if step is None else min(int(found.steps.searchsorted(step)), len(found.steps) - 1)
        targets = found.at(step=step)
        return cls(
            family=found.family,
            lr=found.lr,
            targets=targets,
            spread=dict(zip(found.names, found.spread[row].tolist(), strict=True)),
            seeds=found.seeds,
            sources=found.sources,
            digest=found.digest,
            mismatches=mismatches,
            measured=measured or {},
            outcome=None if measured is None else multipliers(targets, measured),
        )

    @property
    def disagreeing(self) -> tuple[str, ...]:
        """Tensors whose targets the base's seeds do not agree on."""
        return tuple(
            name
            for name, spread in self.spread.items()
            if not math.isnan(spread) and spread > _WIDE
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        content: dict[str, Any] = {
            name: getattr(self, name)
            for name in (
                "family",
                "lr",
                "sources",
                "seeds",
                "digest",
                "targets",
                "spread",
                "mismatches",
            )
        }
        if self.outcome is not None:
            content |= {"measured": self.measured, "multipliers": self.outcome.values}
            content |= {kind: getattr(self.outcome, kind) for kind, _ in _KINDS}
        return content

    def text(self) -> str:
        """The report as people read it: what is wrong first, then a line for each tensor."""
        seeds = f" ({self.seeds} seeds)" if self.seeds else ""
        lines = [f"{len(self.targets)} tensors match {self.family} at lr {self.lr:g}{seeds}"]
        lines += [f"mismatch: {mismatch}" for mismatch in self.mismatches]
        for kind, meaning in _KINDS:
            names = getattr(self.outcome, kind, ())
            if names:
                lines.append(f"{kind} ({meaning}): {', '.join(names)}")
        if self.disagreeing:
            lines.append(
                f"seeds disagree (spread of ln FSLR above {_WIDE:g}): {', '.join(self.disagreeing)}"
            )
        return "\n".join([*lines, "", *_table(self._rows())])

    def _rows(self) -> list[tuple[str, ...]]:
        factors = {} if self.outcome is None else self.outcome.values
        figures = (self.targets, self.measured, factors, self.spread)
        head = ("tensor", "target FSLR", "measured", "multiplier", "spread (ln)")
        names = dict.fromkeys([*self.targets, *factors])
        return [head, *((name, *(_figure(each.get(name)) for each in figures)) for name in names)]


def mismatches(
    found: Targets,
    *,
    optimizer: str = "",
    optimizer_config: Mapping[str, Any] | None = None,
    estimator: str = "",
) -> tuple[str, ...]:
    """In which respects a model's run differs from the recordings behind `found`. Empty and None: not known, not compared."""
    differences = []
    if estimator and estimator != found.estimator.kind:
        differences.append(
            f"estimator: the model's is {estimator}, the targets' {found.estimator.kind}"
        )
    if optimizer and optimizer != found.optimizer:
        differences.append(f"optimizer: the model's is {optimizer}, the targets' {found.optimizer}")
    elif optimizer_config is not None:
        mine, theirs = (
            settings_in_force(optimizer_config),
            settings_in_force(found.optimizer_config),
        )
        for key in sorted({*mine, *theirs}):
            here, there = (json.dumps(each.get(key)) for each in (mine, theirs))
            if here != there:
                differences.append(
                    f"optimizer: {key} is {here} for the model, {there} for the targets"
                )
    return tuple(differences)


def estimator_key(settings: EstimatorSettings | None) -> str:
    """What of an estimator must agree; empty for none."""
    return "" if settings is None else settings.kind


def _figure(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.4g}"


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    ]
