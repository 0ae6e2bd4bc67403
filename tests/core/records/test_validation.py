"""What may be stored and asked: each refusal names the field, the value and what is allowed."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flerm_core.errors import InvalidInput
from flerm_core.records import validation
from flerm_core.records.measurement_batch import MeasurementBatch
from flerm_core.records.queries import BestQuery, RecordingFilter, TargetQuery, TrajectoryQuery
from flerm_core.records.recording import (
    Attempt,
    Ending,
    EstimatorSettings,
    Measurement,
    ParameterList,
    RecordingSpec,
)

NAN, INF = float("nan"), float("inf")
UUID = "123e4567-e89b-42d3-a456-426614174000"
PARAMETERS = ParameterList(("a.weight", "a.bias"), ((2, 3), (3,)), ("input", "bias"))
SPEC = RecordingSpec(
    family="team/demo",
    lr=3e-4,
    parameters=PARAMETERS,
    optimizer="AdamW",
    optimizer_config={"betas": (0.9, 0.999), "fused": None, "nested": {"amsgrad": False}},
    tags={"who": "Zoë"},
)


def refused(sentence: str, call: Callable[..., None], *arguments: object) -> None:
    with pytest.raises(InvalidInput) as caught:
        call(*arguments)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("name", ["a", "decoder-32", "team/decoder.v2_1", "A" * 100])
def test_family_names_that_are_allowed(name: str) -> None:
    validation.validate_family_name(name)


@pytest.mark.parametrize(
    "name",
    ["", "/a", "a/", "a/b/c", "../a", ".a", "a b", "a\n", "é", "A" * 101, "<script>", None, 3],
)
def test_family_names_that_are_not(name: object) -> None:
    refused("it must be 'name' or 'team/name'", validation.validate_family_name, name)


@given(st.text(max_size=12))
def test_a_family_name_is_safe_in_a_path_or_is_refused(name: str) -> None:
    try:
        validation.validate_family_name(name)
    except InvalidInput:
        return
    assert name.isascii()
    assert name.count("/") <= 1
    assert not set(name) & set("\\ %?#&<>\"'\n")
    assert not any(part in ("", ".", "..") for part in name.split("/"))


def test_a_family_within_a_team_is_not_called_as_a_rest_route() -> None:
    validation.validate_family_name("best")
    refused(
        "family: 'team/best' is not allowed; it must be another name than best",
        validation.validate_family_name,
        "team/best",
    )


def test_rows_in_column_form_get_the_same_sentences() -> None:
    good = [row(0), row(1), row(7, (0.0, 3e38), loss=-1.5, learning_rate=0.0, tokens=0)]
    validation.validate_batch(MeasurementBatch.of(good), 2)
    validation.validate_batch(MeasurementBatch.of([]), 2)
    validation.validate_batch(
        MeasurementBatch.of([row(1, (NAN, 0.0), scalars={"sharpness": 2.0})]), 2
    )
    for wrong, sentence in (
        ([row(3), row(3)], "step: 3 follows 3 in one request"),
        ([row(-1)], "step: -1 is not allowed"),
        ([row(1, (1.0, INF))], "values at step 1, parameter 1: inf is not allowed"),
        ([row(1, (NAN, -1.0))], "values at step 1, parameter 1: -1.0 is not allowed"),
        ([row(1), row(2, (1.0,))], "one value for each of the 2 parameters"),
        ([row(1, loss=NAN)], "loss at step 1: nan"),
        ([row(1, learning_rate=-0.1)], "learning_rate at step 1: -0.1"),
        ([row(1, tokens=-1)], "tokens at step 1: -1"),
        ([row(1, scalars={"": 1.0})], "a name of scalars at step 1"),
        ([row(at) for at in range(1001)], "measurements: 1001 entries"),
    ):
        refused(sentence, validation.validate_batch, MeasurementBatch.of(wrong), 2)
    torn = replace(MeasurementBatch.of([row(1)]), fslr=[b"1234567"])
    refused(
        "values at step 1: 7 packed bytes are not whole rows", validation.validate_batch, torn, 2
    )
    late = replace(MeasurementBatch.of([row(1)]), measured_at=[2**62])
    refused("measured_at at step 1: ", validation.validate_batch, late, 2)


def test_a_family_has_a_description_and_axes() -> None:
    validation.validate_family("demo", "Two\nlines", ("layers.*",))
    refused("description: ", validation.validate_family, "demo", "x" * 5000)
    refused("blocks: 'layers' is not an axis", validation.validate_family, "demo", "", ("layers",))


def test_an_ordinary_specification_passes() -> None:
    validation.validate_spec(SPEC)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"id": "1"}, "id: '1' is not allowed; it must be a UUID such as"),
        ({"id": UUID.upper()}, "in lower case"),
        ({"family": "a b"}, "family: 'a b' is not allowed"),
        ({"lr": 0.0}, "lr: 0.0 is not allowed; it must be a finite number above 0"),
        ({"lr": NAN}, "lr: nan is not allowed"),
        ({"lr": True}, "lr: True is not allowed"),
        ({"seed": 2**63}, "seed: 9223372036854775808 is not allowed; it must be an integer from"),
        ({"role": "main"}, "role: 'main' is not allowed; it must be one of base, scaled"),
        ({"variant": ""}, "variant: '' is not allowed; it must be 1 to 64 of a-z"),
        ({"optimizer": "A\0"}, "optimizer: 'A\\x00' is not allowed; it must be printable text of 0 to 128 characters"),
        ({"optimizer_config": {"lr": INF}}, "optimizer_config.lr: inf is not allowed; it must be a finite number"),
        ({"optimizer_config": {"lr": [1, {"a": NAN}]}}, "optimizer_config.lr[1].a: nan is not allowed"),
        ({"config": {"n": 2**60}}, "config.n: 1152921504606846976 is not allowed; it must be at most 9007199254740991 in size"),
        ({"config": {"x": object}}, "it must be JSON: null, a boolean"),
        ({"config": {1: 1}}, "a key of config: 1 is not allowed"),
        ({"config": {"x": ["y" * 1000] * 70}}, "bytes of JSON' is not allowed; it must be at most 65536"),
        ({"estimator": EstimatorSettings(name="guess")}, "estimator.name: 'guess' is not allowed; it must be one of example"),
        ({"estimator": EstimatorSettings(every=-1)}, "estimator.every: -1 is not allowed; it must be an integer from 0"),
        ({"tags": {"a": "b\n"}}, "tags.a: 'b\\n' is not allowed"),
        ({"tags": {str(at): "" for at in range(65)}}, "tags: 65 entries are not allowed; it must be at most 64"),
        ({"world_size": 0}, "world_size: 0 is not allowed"),
        ({"targets_sources": ("x",)}, "targets_sources: 'x' is not allowed"),
        ({"parameters": ParameterList((), (), ())}, "parameters.names: [] is not allowed; it must be at least one name"),
        ({"parameters": ParameterList(("a",) * 2, ((),) * 2, ("bias",) * 2)}, "'a' is not allowed; it must be there only once"),
        ({"parameters": ParameterList(("",), ((),), ("bias",))}, "parameters.names: '' is not allowed"),
        ({"parameters": ParameterList(("a" * 513,), ((),), ("bias",))}, "printable text of 1 to 512 characters"),
        ({"parameters": ParameterList(("a",), ((-1,),), ("bias",))}, "shape of a: -1 is not allowed"),
        ({"parameters": ParameterList(("a",), ((1,) * 17,), ("bias",))}, "of at most 16 dimensions"),
        ({"parameters": ParameterList(("a",), ((),), ("blue",))}, "band of a: 'blue' is not allowed; it must be one of input"),
        ({"parameters": ParameterList(("a", "b"), ((),), ("bias", "bias"))}, "one shape for each of the 2 names"),
    ],
)  # fmt: skip
def test_a_specification_that_is_wrong_somewhere_is_refused(
    change: dict[str, object], sentence: str
) -> None:
    refused(sentence, validation.validate_spec, replace(SPEC, **change))  # type: ignore[arg-type]


def test_endless_nesting_is_refused() -> None:
    nested: dict[str, object] = {}
    nested["again"] = nested
    refused("nested at most 16 levels deep", validation.validate_spec, replace(SPEC, config=nested))


def row(step: int = 1, values: object = (1.0, NAN), **more: object) -> Measurement:
    return Measurement(step=step, values=np.array(values, np.float32), **more)  # type: ignore[arg-type]


def test_ordinary_rows_pass() -> None:
    full = row(
        7,
        (0.0, 3e38),
        loss=-1.5,
        learning_rate=0.0,
        tokens=0,
        measured_at=datetime(2025, 1, 1, tzinfo=UTC),
        scalars={"sharpness": -2.0},
        vectors={"change": np.array([-1, NAN], np.float32)},
    )
    validation.validate_measurements([row(0), row(1), full], 2)
    validation.validate_measurements([], 2)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (row(-1), "step: -1 is not allowed; it must be an integer from 0 to 9007199254740991"),
        (row(True), "step: True is not allowed"),
        (
            row(values=(1.0, INF)),
            "values at step 1, parameter 1: inf is not allowed; it must be finite and not "
            "negative, or NaN",
        ),
        (row(values=(-1.0, 1.0)), "values at step 1, parameter 0: -1.0 is not allowed"),
        (row(values=(1.0,)), "an array of shape [1]"),
        (row(values=((1.0, 1.0),)), "one value for each of the 2 parameters"),
        (row(loss=NAN), "loss at step 1: nan is not allowed; it must be a finite number"),
        (
            row(learning_rate=-0.1),
            "learning_rate at step 1: -0.1 is not allowed; it must be a finite number not below 0",
        ),
        (row(tokens=-1), "tokens at step 1: -1 is not allowed"),
        (row(measured_at=datetime(2025, 1, 1)), "it must be a date and time with a time zone"),
        (row(scalars={"": 1.0}), "a name of scalars at step 1: '' is not allowed"),
        (row(scalars={"sharpness": INF}), "scalar sharpness at step 1: inf is not allowed"),
        (
            row(scalars={str(at): 1.0 for at in range(65)}),
            "scalars at step 1: 65 entries are not allowed; it must be at most 64",
        ),
        (
            row(vectors={"m": np.ones(3, np.float32)}),
            "vector m at step 1: 'an array of shape [3]' is not allowed",
        ),
        (
            row(vectors={"m": np.array([1, -INF], np.float32)}),
            "vector m at step 1, parameter 1: -inf is not allowed",
        ),
    ],
)
def test_a_row_that_is_wrong_somewhere_is_refused(wrong: Measurement, sentence: str) -> None:
    refused(sentence, validation.validate_measurements, [wrong], 2)


def test_steps_ascend_within_a_request() -> None:
    refused(
        "step: 3 follows 3 in one request; steps must ascend",
        validation.validate_measurements,
        [row(3), row(3)],
        2,
    )
    refused(
        "measurements: 1001 entries are not allowed",
        validation.validate_measurements,
        [row(at) for at in range(1001)],
        2,
    )


def test_attempts_and_endings() -> None:
    validation.validate_attempt(Attempt())
    refused("resume_at: -1 is not allowed", validation.validate_attempt, Attempt(resume_at=-1))
    refused("attempt_id: 'x' is not allowed", validation.validate_attempt, Attempt(id="x"))
    refused("started_at: ", validation.validate_attempt, Attempt(started_at=datetime(2025, 1, 1)))
    validation.validate_ending(Ending(status="diverged", final_loss=2.5, final_step=10, tokens=5))
    refused(
        "status: 'running' is not allowed; it must be one of interrupted",
        validation.validate_ending,
        Ending(status="running"),
    )
    refused("final_loss: inf is not allowed", validation.validate_ending, Ending(final_loss=INF))


QUERY = TargetQuery(family="demo", lr=1e-3)


@pytest.mark.parametrize(
    ("call", "question", "sentence"),
    [
        (validation.validate_query, replace(QUERY, lr=-1.0), "lr: -1.0"),
        (validation.validate_query, replace(QUERY, policy="guess"), "policy: 'guess' is not allowed; it must be one of exact"),
        (validation.validate_query, replace(QUERY, depth="guess"), "depth: 'guess' is not allowed; it must be one of split, coherent, root"),
        (validation.validate_query, replace(QUERY, names=("a", "")), "names: '' is not allowed"),
        (validation.validate_query, replace(QUERY, names=("a", "b"), shapes=((),)), "it must be none, or 2"),
        (validation.validate_query, replace(QUERY, blocks=("a.*.b",)), "blocks: 'a.*.b' is not an axis"),
        (validation.validate_query, replace(QUERY, step=-1), "step: -1"),
        (validation.validate_best_query, BestQuery(family="demo", role="x"), "role: 'x'"),
        (validation.validate_trajectory_query, TrajectoryQuery(recording_id="x"), "recording_id: 'x'"),
        (validation.validate_trajectory_query, TrajectoryQuery(recording_id=UUID, max_points=-1), "max_points: -1"),
        (validation.validate_filter, RecordingFilter(status="done"), "status: 'done' is not allowed; it must be one of running"),
        (validation.validate_filter, RecordingFilter(lr_min=NAN), "lr_min: nan"),
        (validation.validate_page_size, 1001, "page_size: 1001 is not allowed; it must be an integer from 0 to 1000"),
    ],
)  # fmt: skip
def test_questions_that_are_wrong_somewhere_are_refused(
    call: Callable[..., None], question: object, sentence: str
) -> None:
    refused(sentence, call, question)


def test_ordinary_questions_pass() -> None:
    validation.validate_query(
        replace(
            QUERY,
            names=("a",),
            shapes=((2,),),
            blocks=("layers.*",),
            estimator=EstimatorSettings(),
            step=0,
        )
    )
    validation.validate_best_query(BestQuery(family="demo"))
    validation.validate_trajectory_query(
        TrajectoryQuery(recording_id=UUID, first_step=0, pattern="layers.*.q")
    )
    validation.validate_filter(RecordingFilter(family="demo", role="base", tags={"a": "b"}))
    validation.validate_page_size(0)


def test_a_long_value_is_cut_in_the_sentence() -> None:
    with pytest.raises(InvalidInput) as caught:
        validation.validate_family_name("x y" * 10_000)
    assert len(str(caught.value)) < 300
