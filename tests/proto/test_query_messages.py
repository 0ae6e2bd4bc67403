"""Questions and answers come back from the wire as they went, in messages of bounded size."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flerm_core import Trajectory
from flerm_core.errors import DataLoss
from flerm_core.matching.targets import Targets, targets_digest
from flerm_core.records.packing import pack
from flerm_core.records.queries import BestQuery, TargetQuery, TrajectoryQuery
from flerm_core.records.recording import ESTIMATORS, EstimatorSettings, Recording, RecordingSpec
from flerm_core.tuning.best_lr import Best, LossPoint
from flerm_proto import query_messages as convert
from flerm_proto.recording_messages import parameters_to_proto, recording_to_proto
from flerm_proto.v1 import registry_pb2 as pb

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
naturals = st.integers(0, 2**53 - 1)
positives = st.floats(2.0**-100, 2.0**100)
tags = st.dictionaries(texts, texts, max_size=3)
configs = st.dictionaries(
    texts,
    st.none() | st.booleans() | naturals | st.lists(st.just(0.5), max_size=2) | texts,
    max_size=3,
)
estimators = st.builds(
    EstimatorSettings,
    name=st.sampled_from(ESTIMATORS),
    samples=st.integers(1, 99),
    output_weight=texts,
)
several = st.lists(texts, max_size=3).map(tuple)

queries = st.builds(
    TargetQuery,
    family=texts,
    lr=positives,
    names=several,
    shapes=st.lists(st.lists(naturals, max_size=3).map(tuple), max_size=3).map(tuple),
    policy=st.sampled_from(["exact", "nearest", "interpolate"]),
    depth=texts,
    blocks=several,
    optimizer=texts,
    optimizer_config=st.none() | configs,
    estimator=st.none() | estimators,
    tags=tags,
    step=st.none() | naturals,
)


@given(queries)
def test_a_question_for_targets_comes_back_as_it_went(query: TargetQuery) -> None:
    assert (
        convert.target_query_from_proto(
            pb.GetTargetsRequest.FromString(
                convert.target_query_to_proto(query).SerializeToString()
            )
        )
        == query
    )


def test_an_empty_configuration_is_a_wish_and_none_is_not() -> None:
    for config in (None, {}):
        query = TargetQuery(family="demo", lr=1.0, optimizer_config=config)
        assert (
            convert.target_query_from_proto(convert.target_query_to_proto(query)).optimizer_config
            == config
        )


def test_none_leaves_out_what_has_a_default() -> None:
    asked = TargetQuery(family="demo", lr=1.0, depth=None, policy=None)  # type: ignore[arg-type]
    assert convert.target_query_to_proto(asked) == pb.GetTargetsRequest(family="demo", lr=1.0)


def test_what_a_question_leaves_out_has_its_default() -> None:
    assert convert.target_query_from_proto(
        pb.GetTargetsRequest(family="demo", lr=1.0)
    ) == TargetQuery(family="demo", lr=1.0)
    assert convert.best_query_from_proto(pb.GetBestRequest(family="demo")) == BestQuery(
        family="demo"
    )
    assert convert.trajectory_query_from_proto(
        pb.GetTrajectoryRequest(recording_id="x")
    ) == TrajectoryQuery(recording_id="x")


def test_a_question_for_a_trajectory_is_read_as_it_was_sent() -> None:
    request = pb.GetTrajectoryRequest(
        recording_id="x", first_step=0, last_step=9, pattern="a*", max_points=3
    )
    assert convert.trajectory_query_from_proto(request) == TrajectoryQuery(
        recording_id="x", first_step=0, last_step=9, pattern="a*", max_points=3
    )


@given(
    st.builds(
        BestQuery,
        family=texts,
        role=texts.filter(bool),
        variant=texts.filter(bool),
        optimizer=texts,
        tags=tags,
    )
)
def test_a_question_for_the_best_rate_comes_back_as_it_went(query: BestQuery) -> None:
    assert convert.best_query_from_proto(convert.best_query_to_proto(query)) == query


numbers = st.floats(allow_nan=False)
points = st.builds(
    LossPoint,
    lr=positives,
    loss=numbers,
    spread=numbers,
    seeds=st.integers(0, 9),
    diverged=st.integers(0, 9),
)


@given(st.builds(Best, family=texts, lr=positives, loss=numbers, optimum=positives,
                 optimum_spread=numbers, next_lr=positives, advice=texts,
                 points=st.lists(points, max_size=3).map(tuple)))  # fmt: skip
def test_the_best_rate_comes_back_as_it_went(best: Best) -> None:
    assert (
        convert.best_from_proto(pb.Best.FromString(convert.best_to_proto(best).SerializeToString()))
        == best
    )


def test_an_unknown_spread_stays_unknown() -> None:
    point = LossPoint(lr=1.0, loss=2.0, spread=math.nan, seeds=1, diverged=0)
    best = Best(
        family="f",
        lr=1,
        loss=2,
        optimum=1,
        optimum_spread=math.nan,
        next_lr=1,
        advice="",
        points=(point,),
    )
    found = convert.best_from_proto(convert.best_to_proto(best))
    assert math.isnan(found.optimum_spread)
    assert math.isnan(found.points[0].spread)


def targets(table: np.ndarray, **more: object) -> Targets:
    rows, columns = table.shape
    names, steps = tuple(f"layers.{at}.weight" for at in range(columns)), np.arange(1, rows + 1)
    fields = {
        "family": "demo",
        "lr": 1e-3,
        "policy": "interpolate",
        "depth": "split",
        "names": names,
        "steps": steps,
        "table": table,
        "spread": table / 2,
        "tokens": steps * 7,
        "optimizer": "AdamW",
        "optimizer_config": {"betas": [0.9, 0.999], "decay": 0},
        "estimator": EstimatorSettings(samples=3),
        "sources": ("one", "two"),
        "source_learning_rates": (5e-4, 2e-3),
        "seeds": 2,
        "digest": targets_digest(names, steps, table),
        "final_step": rows,
        "final_tokens": None,
        "remarks": ("one tensor answers for two",),
    } | more
    return Targets(**fields)  # type: ignore[arg-type]


ARRAYS = ("steps", "table", "spread", "tokens")
sizes = hnp.array_shapes(min_dims=2, max_dims=2, max_side=6)
tables = hnp.arrays(
    np.float32, sizes, elements=st.floats(0, 2.0**100, width=32) | st.just(float("nan"))
)


@given(tables, st.none() | naturals)
def test_targets_come_back_as_they_went(table: np.ndarray, final_tokens: int | None) -> None:
    sent = targets(table, final_tokens=final_tokens)
    wire = [chunk.SerializeToString() for chunk in convert.targets_to_proto(sent)]
    found = convert.targets_from_proto(map(pb.TargetsChunk.FromString, wire))
    for field in Targets.__dataclass_fields__:
        if field in ARRAYS:
            np.testing.assert_array_equal(getattr(found, field), getattr(sent, field))
            assert getattr(found, field).dtype == getattr(sent, field).dtype
        else:
            assert getattr(found, field) == getattr(sent, field)


def test_large_targets_travel_in_messages_of_at_most_a_mebibyte() -> None:
    sent = targets(np.random.default_rng(0).random((3000, 500), np.float32))
    chunks = list(convert.targets_to_proto(sent))
    assert len(chunks) == 13
    assert max(chunk.ByteSize() for chunk in chunks) <= 1 << 20
    np.testing.assert_array_equal(convert.targets_from_proto(chunks).table, sent.table)


def test_targets_that_were_damaged_on_the_way_are_refused() -> None:
    sent = list(convert.targets_to_proto(targets(np.ones((2, 2), np.float32))))
    with pytest.raises(DataLoss, match="began without its header"):
        convert.targets_from_proto(sent[1:])
    with pytest.raises(DataLoss, match="began without its header"):
        convert.targets_from_proto([])
    with pytest.raises(
        DataLoss, match="targets of 'demo': the digest of the rows that arrived is not"
    ):
        convert.targets_from_proto(sent[:1])
    sent[1].rows.steps[0] = 5
    with pytest.raises(DataLoss, match="rows that arrived is not"):
        convert.targets_from_proto(sent)


def trajectory_chunks(recording: Recording, run: Trajectory) -> list[pb.TrajectoryChunk]:
    """A trajectory as a server sends it: a header, then two rows a message."""
    header = pb.TrajectoryHeader(
        recording=recording_to_proto(recording.without_parameters()),
        parameters=parameters_to_proto(run.parameters),
        rows=len(run),
    )
    parts = [slice(start, start + 2) for start in range(0, len(run), 2)]
    return [pb.TrajectoryChunk(header=header)] + [
        pb.TrajectoryChunk(
            rows=pb.TrajectoryRows(
                steps=run.steps[part].tolist(),
                values=pack(run.values[part]),
                losses=run.losses[part].tolist(),
                learning_rates=run.learning_rates[part].tolist(),
                tokens=run.tokens[part].tolist(),
            )
        )
        for part in parts
    ]


def trajectory(values: np.ndarray) -> tuple[Recording, Trajectory]:
    rows, columns = values.shape
    run = Trajectory(
        [f"w{at}" for at in range(columns)], [(2, at) for at in range(columns)],
        np.arange(rows) * 10, values,
        losses=np.where(np.arange(rows) % 2, np.nan, 1.5), tokens=np.arange(rows) - 1,
    )  # fmt: skip
    return Recording(
        spec=RecordingSpec(family="demo", lr=1e-3, parameters=run.parameters), rows=rows
    ), run


@given(tables)
def test_a_trajectory_comes_back_as_it_went(values: np.ndarray) -> None:
    recording, run = trajectory(values)
    wire = [chunk.SerializeToString() for chunk in trajectory_chunks(recording, run)]
    assert convert.trajectory_from_proto(map(pb.TrajectoryChunk.FromString, wire)) == (
        recording.without_parameters(),
        run,
    )


def test_a_trajectory_without_rows_is_a_header() -> None:
    recording, run = trajectory(np.empty((0, 3), np.float32))
    assert len(trajectory_chunks(recording, run)) == 1
    assert convert.trajectory_from_proto(trajectory_chunks(recording, run))[1] == run


def test_a_trajectory_that_breaks_off_or_runs_over_is_refused() -> None:
    recording, run = trajectory(np.ones((2, 2), np.float32))
    header, rows = trajectory_chunks(recording, run)
    with pytest.raises(
        DataLoss, match=f"trajectory of {recording.spec.id}: the stream ended after 0 of 2 rows"
    ):
        convert.trajectory_from_proto([header])
    with pytest.raises(DataLoss, match="rows 2 to 4 of 2 do not fit together"):
        convert.trajectory_from_proto([header, rows, rows])
    rows.rows.losses.pop()
    with pytest.raises(DataLoss, match="rows 0 to 2 of 2 do not fit together"):
        convert.trajectory_from_proto([header, rows])
    for count in (-1, 2**60, 2**63 - 1):
        header.header.rows = count
        for read in (convert.trajectory_from_proto, convert.auxiliary_from_proto):
            with pytest.raises(DataLoss, match=f"says that it has {count} rows"):
                read([header, rows])
