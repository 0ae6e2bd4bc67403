"""Which measurements may be stored: each refusal names the field, the value and what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from flerm_core.errors import InvalidInput
from flerm_core.records import measurement_validation as validation
from flerm_core.records.measurement_batch import MeasurementBatch
from flerm_core.records.recording import Measurement

NAN, INF = float("nan"), float("inf")


def refused(sentence: str, call: Callable[..., None], *arguments: object) -> None:
    with pytest.raises(InvalidInput) as caught:
        call(*arguments)
    assert sentence in str(caught.value)


def row(step: int = 1, values: object = (1.0, NAN), **more: Any) -> Measurement:
    return Measurement(step=step, values=np.array(values, np.float32), **more)


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


def test_a_batch_in_column_form_is_refused_with_the_same_sentences_as_its_rows() -> None:
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
