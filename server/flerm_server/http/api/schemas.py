"""What REST takes and gives, as OpenAPI shows it. A number that is not there (NaN) is null."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from flerm_core.matching.targets import Targets
from flerm_core.records import recording as core
from flerm_core.tuning.best_lr import Best, LossPoint
from flerm_server.http.api.core_models import CoreModel, Number, fields_of, plain_lists


def _known_tokens(tokens: Any) -> list[int | None]:
    """Tokens of each row, with None for those that were not logged."""
    return [None if each is None or each < 0 else int(each) for each in tokens]


class Estimator(fields_of(core.EstimatorSettings, defaults=True), CoreModel):  # type: ignore[misc]
    """How FSLRs were estimated."""

    def to_core(self) -> core.EstimatorSettings:
        """As a core value."""
        return core.EstimatorSettings(**self.model_dump())


class FamilyOut(fields_of(core.Family), CoreModel):  # type: ignore[misc]
    """A family of models whose parameters correspond."""

    learning_rates: list[float] = Field(description="of its base recordings, ascending")


class Families(BaseModel):
    """A page of families by name."""

    families: list[FamilyOut]
    next_page_token: str = Field(description="page_token of the next page; empty: this is the last")


class Parameter(BaseModel):
    """One entry of a recording's parameter list.

    A name with `*` is a depth group: the entry is for the joint change of its tensors.
    """

    name: str
    shape: list[int]
    band: str


_RECORDING_FIELDS = fields_of(
    core.RecordingSpec,
    core.Recording,
    without=["spec", "parameters"],
    models={core.EstimatorSettings: Estimator},
)


class RecordingOut(_RECORDING_FIELDS, CoreModel):  # type: ignore[misc, valid-type]
    """One recording. `parameters` is null in listings."""

    parameters: list[Parameter] | None = None

    @classmethod
    def of(cls, recording: core.Recording) -> RecordingOut:
        """From a core value, with its parameters where it has them."""
        listed = recording.spec.parameters
        parameters = [
            Parameter(name=name, shape=list(shape), band=band)
            for name, shape, band in zip(listed.names, listed.shapes, listed.bands, strict=True)
        ]
        return cls.model_validate(core.flat_fields(recording) | {"parameters": parameters or None})


class Recordings(BaseModel):
    """A page of recordings, newest first."""

    recordings: list[RecordingOut]
    next_page_token: str = Field(description="page_token of the next page; empty: this is the last")


class LossPointOut(fields_of(LossPoint), CoreModel):  # type: ignore[misc]
    """What the completed and diverged runs at one learning rate came to."""

    loss: Number = Field(description="mean final loss over seeds")
    spread: Number = Field(description="standard deviation over seeds; null for one")


class BestOut(fields_of(Best, models={LossPoint: LossPointOut}), CoreModel):  # type: ignore[misc]
    """The best learning rate of a family, and which to try next."""

    lr: float = Field(description="the best recorded rate")
    loss: Number
    optimum: Number = Field(
        description="a parabola in log2 lr through the best point and its neighbours"
    )
    optimum_spread: Number = Field(description="in octaves, over seeds; null for one")
    next_lr: Number
    experiment: str = Field(
        description="which experiment this is, what else there is and how to choose it; "
        "empty: there is one"
    )
    cautions: list[str] = Field(
        description="when not to trust a match to this family; empty: not asked for"
    )


class TransferRowOut(BaseModel):
    """One curve of loss against learning rate: a scale and a variant."""

    scale: str = Field(description="over the base, such as width ×4; base: the base's own")
    variant: str
    seeds: int = Field(description="that all of the curve's rates were run with")
    runs: int = Field(description="all recordings of the curve")
    optimum: Number = Field(description="learning rate of least loss")
    bracketed: bool = Field(description="whether higher losses lie on both sides of the lowest")
    shift: Number = Field(description="octaves from the base's optimum")
    shift_low: Number = Field(description="lower end of the 90 % interval over seeds")
    shift_high: Number
    loss: Number = Field(description="lowest mean final loss")
    loss_at_base: Number = Field(description="at the base's best rate; null: not run or diverged")
    cost: Number = Field(
        description="the loss there over the lowest of plain training, by shared seeds, less 1"
    )
    regret: Number = Field(description="the same over the lowest loss of all variants")
    regret_low: Number = Field(description="lower end of the 90 % interval over seeds")
    regret_high: Number
    points: list[LossPointOut]


class TransferOut(BaseModel):
    """Whether the base's learning rate carried over to other scales."""

    family: str
    best: BestOut | None
    problem: str = Field(description="why there is no best rate; empty: there is one")
    kinds: dict[str, str] = Field(description="which experiment of the family this is")
    left_out: int = Field(description="recordings of other experiments")
    cautions: list[str] = Field(
        description="when not to trust a match to this family, and what regret its matches had"
    )
    rows: list[TransferRowOut]


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


_TARGETS_FIELDS = fields_of(
    Targets,
    without=["steps", "table", "spread", "tokens"],
    models={core.EstimatorSettings: Estimator},
)


class TargetsOut(_TARGETS_FIELDS, CoreModel):  # type: ignore[misc, valid-type]
    """Target FSLRs; `values` and `spread` are [steps][names], null where unmeasured."""

    steps: Annotated[list[int], BeforeValidator(plain_lists)]
    values: Annotated[list[list[float | None]], BeforeValidator(plain_lists)] = Field(
        validation_alias="table"
    )
    spread: Annotated[list[list[float | None]], BeforeValidator(plain_lists)]
    tokens: Annotated[list[int | None], BeforeValidator(_known_tokens)]


class MatchRequest(TargetsRequest):
    """Measured FSLRs of the asker's tensors, to be matched.

    Without `names`, the names of `measured` count.
    """

    measured: dict[str, float | None] = Field(description="name to FSLR; null: unmeasured")
    batch_size: int | None = Field(
        default=None, description="examples of one step; null: rates and betas are the base's"
    )
    total_steps: int | None = Field(
        default=None, description="with batch_size: steps of the run; null: as the base"
    )


class MatchOut(BaseModel):
    """Matched learning rates: lr · target / measured for each tensor.

    Multipliers are rounded to 1/16 octave, and multiplied for another batch afterwards.
    """

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
    optimizer_config: dict[str, Any] = Field(
        description="the base's settings; with batch_size, with betas that follow the batch"
    )
    remarks: list[str]
    cautions: list[str] = Field(
        description="when not to trust the match, and what regret to expect, in sentences"
    )


class FigureOut(BaseModel):
    """A plotly figure, for `Plotly.newPlot` or `plotly.graph_objects.Figure`."""

    data: list[dict[str, Any]]
    layout: dict[str, Any]


Losses.model_rebuild()
