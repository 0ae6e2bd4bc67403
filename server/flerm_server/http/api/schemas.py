"""What REST takes and gives, as OpenAPI shows it. A number that is not there (NaN) is null."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from flerm_core.matching.targets import Targets
from flerm_core.records import recording as core
from flerm_core.tuning.best_lr import Best


def number(value: float | None) -> float | None:
    """A float as JSON can carry it: None for what is not finite."""
    return None if value is None or not math.isfinite(value) else value


class Estimator(BaseModel):
    """How FSLRs were estimated."""

    name: str = "example"
    samples: int = 1
    warmup: int = 8
    every: int = 100
    start: int = 1
    output_weight: str = ""
    output_bias: str = ""

    def to_core(self) -> core.EstimatorSettings:
        """As a core value."""
        return core.EstimatorSettings(**self.model_dump())


class FamilyOut(BaseModel):
    """A family of models whose parameters correspond."""

    name: str
    description: str
    blocks: list[str]
    created_at: datetime
    updated_at: datetime
    created_by: str
    recordings: int
    learning_rates: list[float] = Field(description="of its base recordings, ascending")

    @classmethod
    def of(cls, family: core.Family) -> FamilyOut:
        """From a core value."""
        return cls(
            name=family.name,
            description=family.description,
            blocks=list(family.blocks),
            created_at=family.created_at,
            updated_at=family.updated_at,
            created_by=family.created_by,
            recordings=family.recordings,
            learning_rates=list(family.learning_rates),
        )


class Families(BaseModel):
    """A page of families by name."""

    families: list[FamilyOut]
    next_page_token: str = Field(description="page_token of the next page; empty: this is the last")


class Parameter(BaseModel):
    """One entry of a recording's parameter list. A name with `*` is a role: the joint change of its tensors."""

    name: str
    shape: list[int]
    band: str


class RecordingOut(BaseModel):
    """One recording. `parameters` is null in listings."""

    id: str
    family: str
    lr: float
    seed: int
    role: str
    variant: str
    status: str
    attempt: int
    rows: int
    first_step: int
    last_step: int
    final_loss: float | None
    tokens: int | None
    optimizer: str
    optimizer_config: dict[str, Any]
    config: dict[str, Any]
    estimator: Estimator
    tags: dict[str, str]
    world_size: int
    versions: dict[str, str]
    targets_digest: str
    targets_sources: list[str]
    created_at: datetime
    updated_at: datetime
    finished_at: datetime | None
    created_by: str
    parameter_count: int
    parameters: list[Parameter] | None = None

    @classmethod
    def of(cls, recording: core.Recording) -> RecordingOut:
        """From a core value; with its parameters where it has them."""
        spec, listed = recording.spec, recording.spec.parameters
        parameters = [
            Parameter(name=name, shape=list(shape), band=band)
            for name, shape, band in zip(listed.names, listed.shapes, listed.bands, strict=True)
        ]
        estimator = Estimator.model_validate(spec.estimator, from_attributes=True)
        return cls(
            id=spec.id,
            family=spec.family,
            lr=spec.lr,
            seed=spec.seed,
            role=spec.role,
            variant=spec.variant,
            status=recording.status,
            attempt=recording.attempt,
            rows=recording.rows,
            first_step=recording.first_step,
            last_step=recording.last_step,
            final_loss=number(recording.final_loss),
            tokens=recording.tokens,
            optimizer=spec.optimizer,
            optimizer_config=dict(spec.optimizer_config),
            config=dict(spec.config),
            estimator=estimator,
            tags=dict(spec.tags),
            world_size=spec.world_size,
            versions=dict(spec.versions),
            targets_digest=spec.targets_digest,
            targets_sources=list(spec.targets_sources),
            created_at=recording.created_at,
            updated_at=recording.updated_at,
            finished_at=recording.finished_at,
            created_by=recording.created_by,
            parameter_count=recording.parameter_count,
            parameters=parameters or None,
        )


class Recordings(BaseModel):
    """A page of recordings, newest first."""

    recordings: list[RecordingOut]
    next_page_token: str = Field(description="page_token of the next page; empty: this is the last")


class LossPointOut(BaseModel):
    """What the completed and diverged runs at one learning rate came to."""

    lr: float
    loss: float | None = Field(description="mean final loss over seeds")
    spread: float | None = Field(description="standard deviation over seeds; null for one")
    seeds: int
    diverged: int


class BestOut(BaseModel):
    """The best learning rate of a family, and which to try next."""

    family: str
    lr: float = Field(description="the best recorded rate")
    loss: float | None
    optimum: float | None = Field(
        description="a parabola in log2 lr through the best point and its neighbours"
    )
    optimum_spread: float | None = Field(description="in octaves, over seeds; null for one")
    next_lr: float | None
    advice: str
    points: list[LossPointOut]

    @classmethod
    def of(cls, best: Best) -> BestOut:
        """From a core value."""
        return cls(
            family=best.family,
            lr=best.lr,
            loss=number(best.loss),
            optimum=number(best.optimum),
            optimum_spread=number(best.optimum_spread),
            next_lr=number(best.next_lr),
            advice=best.advice,
            points=[
                LossPointOut(
                    lr=point.lr,
                    loss=number(point.loss),
                    spread=number(point.spread),
                    seeds=point.seeds,
                    diverged=point.diverged,
                )
                for point in best.points
            ],
        )


class Losses(BaseModel):
    """Loss against learning rate, one curve per role and variant."""

    family: str
    curves: list[LossCurve]


class LossCurve(BaseModel):
    """One curve of `Losses`."""

    role: str
    variant: str
    points: list[LossPointOut]


class TargetsRequest(BaseModel):
    """Which targets to give, and for which architecture."""

    model_config = ConfigDict(extra="forbid")

    family: str
    lr: float
    names: list[str] = Field(
        default=[], description="the asker's parameters; empty: the base's own"
    )
    shapes: list[list[int]] = Field(
        default=[], description="of the asker's parameters; may be empty"
    )
    policy: str = Field(default="interpolate", description="exact, nearest or interpolate")
    depth: str = Field(default="", description="depth rule; empty: the default")
    blocks: list[str] = Field(
        default=[], description="block axes such as layers.*; empty: the family's, else found"
    )
    optimizer: str = ""
    optimizer_config: dict[str, Any] | None = None
    estimator: Estimator | None = None
    tags: dict[str, str] = {}
    step: int | None = Field(default=None, description="only the row at this step; null: all")


class TargetsOut(BaseModel):
    """Target FSLRs; `values` and `spread` are [steps][names], null where unmeasured."""

    family: str
    lr: float
    policy: str
    depth: str
    names: list[str]
    steps: list[int]
    values: list[list[float | None]]
    spread: list[list[float | None]]
    tokens: list[int | None]
    optimizer: str
    optimizer_config: dict[str, Any]
    estimator: Estimator
    sources: list[str]
    source_learning_rates: list[float]
    seeds: int
    digest: str
    final_step: int
    final_tokens: int | None

    @classmethod
    def of(cls, targets: Targets) -> TargetsOut:
        """From a core value."""
        return cls(
            family=targets.family,
            lr=targets.lr,
            policy=targets.policy,
            depth=targets.depth,
            names=list(targets.names),
            steps=targets.steps.tolist(),
            values=[[number(value) for value in row] for row in targets.table.tolist()],
            spread=[[number(value) for value in row] for row in targets.spread.tolist()],
            tokens=[None if value < 0 else value for value in targets.tokens.tolist()],
            optimizer=targets.optimizer,
            optimizer_config=dict(targets.optimizer_config),
            estimator=Estimator.model_validate(targets.estimator, from_attributes=True),
            sources=list(targets.sources),
            source_learning_rates=list(targets.source_learning_rates),
            seeds=targets.seeds,
            digest=targets.digest,
            final_step=targets.final_step,
            final_tokens=targets.final_tokens,
        )


class MatchRequest(TargetsRequest):
    """Measured FSLRs of the asker's tensors, to be matched. `names` may be left out: they are those measured."""

    measured: dict[str, float | None] = Field(description="name to FSLR; null: unmeasured")


class MatchOut(BaseModel):
    """Matched learning rates: lr · target / measured, tensor by tensor, multipliers rounded to 1/16 octave."""

    family: str
    lr: float
    learning_rates: dict[str, float]
    multipliers: dict[str, float]
    targets: dict[str, float | None]
    unmeasured: list[str] = Field(description="left at multiplier 1: no FSLR here or in the base")
    noisy: list[str] = Field(description="left at multiplier 1: too small to be more than noise")
    clamped: list[str] = Field(description="multipliers held at a bound")
    sources: list[str]
    digest: str


class FigureOut(BaseModel):
    """A plotly figure: `Plotly.newPlot(element, data, layout)`, or `plotly.graph_objects.Figure(figure)`."""

    data: list[dict[str, Any]]
    layout: dict[str, Any]


Losses.model_rebuild()
