"""Recordings, families and rows come back from the wire as they went."""

from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flerm_core.errors import DataLoss
from flerm_core.records.queries import RecordingFilter
from flerm_core.records.recording import (
    ESTIMATORS,
    Ending,
    EstimatorSettings,
    Family,
    Measurement,
    ParameterList,
    Recording,
    RecordingSpec,
)
from flerm_proto import recording_messages
from flerm_proto.fields import TOGETHER
from flerm_proto.v1 import registry_pb2 as pb

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
naturals = st.integers(0, 2**53 - 1)
positives = st.floats(2.0**-100, 2.0**100)
moments = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))
json_like = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(-1e6, 1e6).filter(lambda x: x != int(x))
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
configs = st.dictionaries(texts, json_like, max_size=3)
tags = st.dictionaries(texts, texts, max_size=3)
estimators = st.builds(
    EstimatorSettings,
    name=st.sampled_from(ESTIMATORS),
    samples=st.integers(1, 99),
    warmup=st.integers(1, 99),
    every=naturals,
    start=naturals,
    output_weight=texts,
    output_bias=texts,
)
shapes = st.lists(st.integers(0, 2**40), max_size=3).map(tuple)
parameters = st.lists(st.tuples(texts, shapes, texts), max_size=4).map(
    lambda rows: ParameterList(
        tuple(row[0] for row in rows), tuple(row[1] for row in rows), tuple(row[2] for row in rows)
    )
)
specs = st.builds(
    RecordingSpec,
    family=texts,
    lr=positives,
    parameters=parameters,
    id=texts,
    seed=st.integers(-(2**63), 2**63 - 1),
    role=texts,
    variant=texts,
    optimizer=texts,
    optimizer_config=configs,
    config=configs,
    estimator=estimators,
    tags=tags,
    world_size=st.integers(1, 10_000),
    versions=tags,
    targets_digest=texts,
    targets_sources=st.lists(texts, max_size=3).map(tuple),
)
recordings = st.builds(
    Recording,
    spec=specs,
    status=texts,
    attempt=st.integers(1, 99),
    rows=naturals,
    first_step=naturals,
    last_step=naturals,
    final_loss=st.none() | st.floats(allow_nan=False),
    tokens=st.none() | naturals,
    created_at=moments,
    updated_at=moments,
    finished_at=st.none() | moments,
    created_by=texts,
    parameter_count=naturals,
)


@given(recordings)
def test_a_recording_comes_back_as_it_went(recording: Recording) -> None:
    wire = recording_messages.recording_to_proto(recording).SerializeToString()
    assert recording_messages.recording_from_proto(pb.Recording.FromString(wire)) == recording


def test_many_recordings_come_back_in_their_order() -> None:
    """More of them than are converted together, with and without what is optional."""
    shared, moment = {"width": 8, "betas": [0.9, 0.99]}, datetime(2026, 3, 1, tzinfo=UTC)
    sent = [
        Recording(
            spec=RecordingSpec(
                family="f",
                lr=1.0,
                parameters=ParameterList((), (), ()),
                seed=at,
                config=shared if at % 2 else {"width": at},
                tags={"at": str(at)} if at % 3 else {},
            ),
            tokens=at if at % 5 else None,
            finished_at=moment if at % 7 else None,
            remarks=("a remark",) * (at % 4),
        )
        for at in range(2 * TOGETHER + 1)
    ]
    page = pb.ListRecordingsResponse()
    recording_messages.RECORDING.add(page.recordings, sent)
    assert [each.SerializeToString() for each in page.recordings] == [
        recording_messages.recording_to_proto(each).SerializeToString() for each in sent
    ]
    found = recording_messages.RECORDING.values(page.recordings)
    assert found == sent
    assert found[1].spec.config is not found[3].spec.config


families = st.builds(
    Family,
    name=texts,
    description=texts,
    blocks=st.lists(texts, max_size=2).map(tuple),
    created_at=moments,
    updated_at=moments,
    created_by=texts,
    recordings=naturals,
    learning_rates=st.lists(positives, max_size=3).map(tuple),
)


@given(families)
def test_a_family_comes_back_as_it_went(family: Family) -> None:
    assert (
        recording_messages.family_from_proto(
            pb.Family.FromString(recording_messages.family_to_proto(family).SerializeToString())
        )
        == family
    )


@given(
    st.builds(
        Ending,
        status=texts,
        final_loss=st.none() | positives,
        final_step=st.none() | naturals,
        tokens=st.none() | naturals,
        remarks=st.lists(texts, max_size=2).map(tuple),
    )
)
def test_an_ending_comes_back_as_it_went(ending: Ending) -> None:
    message = recording_messages.ending_to_proto(ending, recording_id="recording", attempt=3)
    assert (message.recording_id, message.attempt) == ("recording", 3)
    assert recording_messages.ending_from_proto(message) == ending


optional_rate, optional_moment = st.none() | positives, st.none() | moments


filters_asked = st.builds(
    RecordingFilter,
    family=texts,
    lr_min=optional_rate,
    lr_max=optional_rate,
    role=texts,
    variant=texts,
    optimizer=texts,
    status=texts,
    tags=tags,
    created_after=optional_moment,
    created_before=optional_moment,
)


@given(filters_asked)
def test_a_filter_comes_back_as_it_went(filters: RecordingFilter) -> None:
    message = recording_messages.filter_to_proto(filters, page_size=50, page_token="token")
    assert (message.page_size, message.page_token) == (50, "token")
    assert recording_messages.filter_from_proto(message) == filters


vectors = hnp.arrays(
    np.float32, st.integers(0, 5), elements=st.floats(0, width=32) | st.just(float("nan"))
)


@given(
    vectors,
    st.none() | positives,
    st.none() | naturals,
    st.none() | moments,
    st.dictionaries(texts, vectors, max_size=2),
)
def test_a_row_comes_back_bit_by_bit(
    values: np.ndarray,
    loss: float | None,
    tokens: int | None,
    at: datetime | None,
    extra: dict[str, np.ndarray],
) -> None:
    sent = Measurement(
        step=7,
        values=values,
        loss=loss,
        learning_rate=loss,
        tokens=tokens,
        measured_at=at,
        scalars={"s": 1.5},
        vectors=extra,
    )
    row = recording_messages.measurement_from_proto(
        pb.Measurement.FromString(recording_messages.measurement_to_proto(sent).SerializeToString())
    )
    assert (row.step, row.loss, row.learning_rate, row.tokens, row.measured_at) == (
        7,
        loss,
        loss,
        tokens,
        at,
    )
    assert row.values.tobytes() == values.tobytes()
    assert row.scalars == {"s": 1.5}
    assert {name: vector.tobytes() for name, vector in row.vectors.items()} == {
        name: each.tobytes() for name, each in extra.items()
    }


def test_bytes_that_are_no_floats_are_damage() -> None:
    with pytest.raises(DataLoss, match="7 packed bytes are not whole rows"):
        recording_messages.measurement_from_proto(pb.Measurement(step=1, fslr=b"1234567"))


def test_what_comes_back_is_its_own_and_what_goes_is_as_it_is_then() -> None:
    """Conversions of equal configurations are kept, and must not be shared with whoever changes
    one."""
    config = {"width": 8, "betas": [0.9, 0.99]}
    messages = []
    for width in (8, 8, 16, True, 1):
        config["width"] = width
        messages.append(recording_messages.spec_to_proto(RecordingSpec(
            family="f", lr=1.0, parameters=ParameterList((), (), ()), config=config,
        )))  # fmt: skip
    first, second, *others = (recording_messages.spec_from_proto(each).config for each in messages)
    assert [first["width"], second["width"], *(each["width"] for each in others)] == [
        8,
        8,
        16,
        1,
        1,
    ]
    assert others[1]["width"] is True
    assert others[2]["width"] is not True
    assert isinstance(first, dict)
    first["betas"].append(0.5)
    first["width"] = 9
    assert second == {"width": 8, "betas": [0.9, 0.99]}
    assert recording_messages.spec_from_proto(messages[0]).config == second
