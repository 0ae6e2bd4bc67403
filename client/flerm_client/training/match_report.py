"""A model beside its targets: the report of `FLeRM.match(dry_run=True)` and `flerm check`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flerm_client.training.run_remarks import RunRemarks
from flerm_core.errors import join_names
from flerm_core.matching.match import Multipliers, multipliers
from flerm_core.matching.targets import Targets
from flerm_core.records.comparability import settings_in_force
from flerm_core.records.recording import EstimatorSettings

_WIDE = 0.5  # of ln FSLR over seeds; a target with a greater spread is a rough guess
_KINDS = (
    ("unmeasured", "no update or no target; they keep multiplier 1"),
    ("noisy", "an FSLR too small to be more than noise; they keep multiplier 1"),
    ("clamped", "their multiplier would be beyond the clamp"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchReport:
    """Targets beside what was measured, by tensor.

    family, lr: the base recordings' family and learning rate.
    targets, measured: FSLRs in output units per unit learning rate.
    spread: of ln FSLR over the base's seeds; NaN for one seed.
    seeds, sources, digest: of the targets; 0 and empty for targets of no recording.
    mismatches: sentences that say where the run differs from the recordings.
    remarks: those of the targets (`Targets.remarks`).
    cautions: when not to trust the match (`match_cautions`).
    outcome: the multipliers, and why some tensors have none; None where nothing was measured yet.
    """

    family: str
    lr: float
    targets: Mapping[str, float]
    spread: Mapping[str, float] = field(default_factory=dict)
    seeds: int = 0
    sources: tuple[str, ...] = ()
    digest: str = ""
    mismatches: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()
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
        cautions: tuple[str, ...] = (),
        times: float = 1.0,
    ) -> MatchReport:
        """The targets `found` beside `measured` FSLRs, both at the base's `step`.

        `step` None: the first row. `measured` None: nothing was measured yet. `times`: as in
        `multipliers`.
        """
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
            remarks=found.remarks,
            cautions=cautions,
            measured=measured or {},
            outcome=None if measured is None else multipliers(targets, measured, times=times),
        )

    @property
    def disagreeing(self) -> tuple[str, ...]:
        """Tensors whose targets differ widely between the base's seeds."""
        return tuple(name for name, spread in self.spread.items() if spread > _WIDE)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        names = ["family", "lr", "sources", "seeds", "digest", "targets", "spread"]
        names += ["mismatches", "remarks", "cautions"]
        content: dict[str, Any] = {name: getattr(self, name) for name in names}
        if self.outcome is not None:
            content |= {"measured": self.measured, "multipliers": self.outcome.values}
            content |= {kind: getattr(self.outcome, kind) for kind, _ in _KINDS}
        return content

    def text(self) -> str:
        """The report for people: what is wrong first, then a line for each tensor."""
        seeds = f" ({self.seeds} seeds)" if self.seeds else ""
        lines = [f"{len(self.targets)} tensors match {self.family} at lr {self.lr:g}{seeds}"]
        lines += [f"mismatch: {mismatch}" for mismatch in self.mismatches]
        lines += self.remarks
        lines += [f"caution: {caution}" for caution in self.cautions]
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


def say_unmatched(outcome: Multipliers, remarks: RunRemarks) -> None:
    """Says which tensors have an FSLR that is noise, or a multiplier that was bounded.

    Tensors without an update yet (LoRA's A at first) are expected, and not mentioned.
    """
    reasons = [
        (outcome.noisy, "have too small an FSLR to be matched and keep their multiplier"),
        (outcome.clamped, "were clamped"),
    ]
    for names, reason in reasons:
        if names:
            remarks.say(f"{len(names)} tensors {reason}: {join_names(names)}")
    if set(outcome.values) - {*outcome.unmeasured, *outcome.noisy}:
        remarks.matched = True


def mismatches(
    found: Targets,
    *,
    optimizer: str = "",
    optimizer_config: Mapping[str, Any] | None = None,
    estimator: str = "",
) -> tuple[str, ...]:
    """Sentences that say where a run differs from the recordings behind the targets `found`.

    An argument that is empty or None is not known, and not compared.
    """
    differences = []
    if estimator and estimator != found.estimator.comparability:
        differences.append(
            f"estimator: the model's is {estimator}, the targets' {found.estimator.comparability}"
        )
    if optimizer and optimizer != found.optimizer:
        differences.append(f"optimizer: the model's is {optimizer}, the targets' {found.optimizer}")
    elif optimizer_config is not None:
        configs = settings_in_force(optimizer_config), settings_in_force(found.optimizer_config)
        for key in sorted({*configs[0], *configs[1]}):
            mine, theirs = (json.dumps(config.get(key)) for config in configs)
            if mine != theirs:
                differences.append(
                    f"optimizer: {key} is {mine} for the model, {theirs} for the targets"
                )
    return tuple(differences)


def estimator_key(settings: EstimatorSettings | None) -> str:
    """The part of an estimator's settings that must agree with the targets'; empty for None."""
    return "" if settings is None else settings.comparability


def _figure(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.4g}"


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        figures = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append("  ".join([row[0].ljust(widths[0]), *figures]))
    return lines
