"""An example of each request and each answer, for the OpenAPI document.

A test checks the examples against their models.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import Path

from flerm_core.records.recording import EstimatorSettings, ParameterList, Recording, RecordingSpec
from flerm_server.http.api.schemas import Estimator, RecordingOut

ID = "6a1f0c1e-8a57-4b6e-9f0e-0c5d3c1c9a11"
NAME = "resmlp"
TIME = "2026-03-01T12:00:00Z"
_TIME = datetime.fromisoformat(TIME)

FamilyName = Annotated[
    str, Path(description="A family's name: `name` or `team/name`", examples=[NAME])
]
RecordingId = Annotated[str, Path(description="A recording's id, a UUID", examples=[ID])]

_ESTIMATOR = Estimator.of(EstimatorSettings()).model_dump()


def _shown(recording: Recording) -> dict[str, Any]:
    return RecordingOut.of(recording).model_dump(mode="json")


FAMILY_VALUE: dict[str, Any] = {
    "name": NAME,
    "description": "residual MLPs on digits",
    "blocks": ["layers.*"],
    "created_at": TIME,
    "updated_at": TIME,
    "created_by": "",
    "recordings": 7,
    "learning_rates": [0.001, 0.004, 0.016],
}
_RECORDING = Recording(
    spec=RecordingSpec(
        id=ID,
        family=NAME,
        lr=0.004,
        parameters=ParameterList(
            ("layers.0.weight", "readout.weight"),
            ((32, 32), (10, 32)),
            ("feed-forward", "readout"),
        ),
        optimizer="Adam",
        optimizer_config={"betas": [0.9, 0.999]},
        config={"width": 32},
        tags={"project": "digits"},
        versions={"flerm": "0.1.0"},
    ),
    status="completed",
    rows=5,
    first_step=1,
    last_step=401,
    final_loss=0.0123,
    created_at=_TIME,
    updated_at=_TIME,
    finished_at=_TIME,
    parameter_count=2,
    final_step=401,
)
RECORDING_VALUE: dict[str, Any] = _shown(_RECORDING.without_parameters())
_POINTS = [
    {"lr": 0.001, "loss": 0.05, "spread": 0.002, "seeds": 2, "diverged": 0},
    {"lr": 0.004, "loss": 0.0123, "spread": 0.001, "seeds": 2, "diverged": 0},
]
BEST_VALUE: dict[str, Any] = {
    "family": NAME,
    "lr": 0.004,
    "loss": 0.0123,
    "optimum": 0.004,
    "optimum_spread": None,
    "next_lr": 0.008,
    "advice": (
        "The best rate 0.004 is the highest recorded, so the optimum may lie above it: try 0.008."
    ),
    "points": _POINTS,
    "experiment": "",
    "cautions": [],
}
TARGETS_VALUE: dict[str, Any] = {
    "family": NAME,
    "lr": 0.004,
    "policy": "interpolate",
    "depth": "coherent",
    "names": ["layers.0.weight"],
    "steps": [1, 101],
    "values": [[28.98], [11.2]],
    "spread": [[0.21], [0.18]],
    "tokens": [None, None],
    "optimizer": "Adam",
    "optimizer_config": {"betas": [0.9, 0.999]},
    "estimator": _ESTIMATOR,
    "sources": [ID],
    "source_learning_rates": [0.004],
    "seeds": 1,
    "digest": "0f" * 32,
    "final_step": 401,
    "final_tokens": None,
    "remarks": [],
    "batch_size": 64,
}
TARGETS_REQUEST: dict[str, Any] = {
    "family": NAME,
    "lr": 0.004,
    "names": ["layers.0.weight"],
    "step": 1,
}
MATCH_REQUEST: dict[str, Any] = {
    "family": NAME,
    "lr": 0.004,
    "measured": {"layers.0.weight": 103.0},
}
MATCH_VALUE: dict[str, Any] = {
    "family": NAME,
    "lr": 0.004,
    "learning_rates": {"layers.0.weight": 0.001139},
    "multipliers": {"layers.0.weight": 0.2847},
    "targets": {"layers.0.weight": 28.98},
    "unmeasured": [],
    "noisy": [],
    "clamped": [],
    "sources": [ID],
    "digest": "0f" * 32,
    "optimizer_config": {"betas": [0.9, 0.999]},
    "remarks": [],
    "cautions": [
        "The base has one seed: optima of single seeds lie up to 0.4 octaves apart, so record two "
        "more."
    ],
}
FIGURE_VALUE: dict[str, Any] = {
    "data": [{"type": "scatter", "name": "feed-forward (2)", "x": [1, 101], "y": [28.98, 11.2]}],
    "layout": {"yaxis": {"type": "log"}},
}
EVENT = (
    'event: rows\ndata: {"status": "running", "rows": 3, "last_step": 201, "final_loss": null}\n\n'
    'event: end\ndata: {"status": "completed", "rows": 5, "last_step": 401, '
    '"final_loss": 0.0123}\n\n'
)
CSV = "step,loss,learning_rate,tokens,layers.0.weight\n1,2.31,0.004,,28.98\n"
TRAJECTORY_VALUE: dict[str, Any] = {
    "recording": RECORDING_VALUE,
    "names": ["layers.0.weight"],
    "shapes": [[32, 32]],
    "bands": ["feed-forward"],
    "rows": [{"step": 1, "loss": 2.31, "learning_rate": 0.004, "tokens": None, "values": [28.98]}],
}

RATES_VALUE: dict[str, Any] = {
    "recording_id": ID,
    "depth": "coherent",
    "clock": "step",
    "sources": [ID],
    "missing": [],
    "steps": [1],
    "schedule": [0.004],
    "match_step": 1,
    "tensors": [
        {
            "name": "layers.0.weight",
            "band": "feed-forward",
            "shape": [32, 32],
            "note": "",
            "target": [28.98],
            "fslr": [103.0],
            "multiplier": [0.2872],
            "learning_rate": [0.001149],
            "ratio": [1.0208],
        }
    ],
}
RATES_CSV = (
    "step,name,band,target,fslr,multiplier,learning_rate,ratio,note\n"
    "1,layers.0.weight,feed-forward,28.98,103,0.2872,0.001149,1.0208,\n"
)

Responses = dict[int | str, dict[str, Any]]


def _json(value: object) -> Responses:
    return {200: {"content": {"application/json": {"example": value}}}}


FAMILY = _json(FAMILY_VALUE)
FAMILIES = _json({"families": [FAMILY_VALUE], "next_page_token": ""})
RECORDING = _json(_shown(_RECORDING))
RECORDINGS = _json({"recordings": [RECORDING_VALUE], "next_page_token": ""})
BEST = _json(BEST_VALUE)
TRANSFER = _json(
    {
        "family": NAME,
        "best": BEST_VALUE,
        "problem": "",
        "kinds": {},
        "left_out": 0,
        "cautions": [],
        "rows": [
            {
                "scale": "width ×4",
                "variant": "matched",
                "seeds": 2,
                "runs": 4,
                "optimum": 0.0038,
                "bracketed": True,
                "shift": -0.04,
                "shift_low": -0.27,
                "shift_high": 0.14,
                "loss": 0.0101,
                "loss_at_base": 0.0102,
                "cost": -0.014,
                "regret": 0.01,
                "regret_low": 0.0,
                "regret_high": 0.018,
                "points": _POINTS,
            }
        ],
    }
)
LOSSES = _json(
    {"family": NAME, "curves": [{"role": "base", "variant": "plain", "points": _POINTS}]}
)
TARGETS = _json(TARGETS_VALUE)
MATCH = _json(MATCH_VALUE)
FIGURE = _json(FIGURE_VALUE)
TRAJECTORY: Responses = {
    200: {
        "content": {
            "application/json": {"example": TRAJECTORY_VALUE},
            "text/csv": {"example": CSV, "schema": {"type": "string"}},
            "application/vnd.apache.parquet": {"schema": {"type": "string", "format": "binary"}},
        }
    }
}
RATES: Responses = {
    200: {
        "content": {
            "application/json": {"example": RATES_VALUE},
            "text/csv": {"example": RATES_CSV, "schema": {"type": "string"}},
            "application/vnd.apache.parquet": {"schema": {"type": "string", "format": "binary"}},
        }
    }
}
