"""What may be stored and asked: each refusal names the field, the value and what is allowed."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flerm_core.errors import InvalidInput
from flerm_core.records import validation
from flerm_core.records.queries import BestQuery, RecordingFilter, TargetQuery, TrajectoryQuery
from flerm_core.records.recording import (
    Attempt,
    Ending,
    EstimatorSettings,
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
    validation.validate_new_family_name("best")
    refused(
        "family: 'team/best' is not allowed; it must be another name than best",
        validation.validate_new_family_name,
        "team/best",
    )
    validation.validate_family_name("team/best")  # one of before is found, and can be renamed


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
        (
            {"optimizer": "A\0"},
            "optimizer: 'A\\x00' is not allowed; it must be printable text of 0 to 128 characters",
        ),
        (
            {"optimizer_config": {"lr": INF}},
            "optimizer_config.lr: inf is not allowed; it must be a finite number",
        ),
        (
            {"optimizer_config": {"lr": [1, {"a": NAN}]}},
            "optimizer_config.lr[1].a: nan is not allowed",
        ),
        (
            {"config": {"n": 2**60}},
            "config.n: 1152921504606846976 is not allowed; "
            "it must be at most 9007199254740991 in size",
        ),
        ({"config": {"x": object}}, "it must be JSON: null, a boolean"),
        ({"config": {1: 1}}, "a key of config: 1 is not allowed"),
        (
            {"config": {"x": ["y" * 1000] * 70}},
            "bytes of JSON' is not allowed; it must be at most 65536",
        ),
        (
            {"estimator": EstimatorSettings(name="guess")},
            "estimator.name: 'guess' is not allowed; it must be one of example",
        ),
        (
            {"estimator": EstimatorSettings(every=-1)},
            "estimator.every: -1 is not allowed; it must be an integer from 0",
        ),
        ({"tags": {"a": "b\n"}}, "tags.a: 'b\\n' is not allowed"),
        (
            {"tags": {str(at): "" for at in range(65)}},
            "tags: 65 entries are not allowed; it must be at most 64",
        ),
        ({"world_size": 0}, "world_size: 0 is not allowed"),
        ({"targets_sources": ("x",)}, "targets_sources: 'x' is not allowed"),
        (
            {"parameters": ParameterList((), (), ())},
            "parameters.names: [] is not allowed; it must be at least one name",
        ),
        (
            {"parameters": ParameterList(("a",) * 2, ((),) * 2, ("bias",) * 2)},
            "'a' is not allowed; it must be there only once",
        ),
        (
            {"parameters": ParameterList(("",), ((),), ("bias",))},
            "parameters.names: '' is not allowed",
        ),
        (
            {"parameters": ParameterList(("a" * 513,), ((),), ("bias",))},
            "printable text of 1 to 512 characters",
        ),
        (
            {"parameters": ParameterList(("a",), ((-1,),), ("bias",))},
            "shape of a: -1 is not allowed",
        ),
        (
            {"parameters": ParameterList(("a",), ((1,) * 17,), ("bias",))},
            "of at most 16 dimensions",
        ),
        (
            {"parameters": ParameterList(("a",), ((),), ("blue",))},
            "band of a: 'blue' is not allowed; it must be one of input",
        ),
        (
            {"parameters": ParameterList(("a", "b"), ((),), ("bias", "bias"))},
            "one shape for each of the 2 names",
        ),
    ],
)
def test_a_specification_that_is_wrong_somewhere_is_refused(
    change: dict[str, object], sentence: str
) -> None:
    refused(sentence, validation.validate_spec, replace(SPEC, **change))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class WiderSpec(RecordingSpec):
    """A specification with fields that no release has."""

    cluster: str = ""
    restarts: int = 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"cluster": "a\n"},
            "cluster: 'a\\n' is not allowed; it must be printable text of 0 to 128",
        ),
        ({"restarts": -1}, "restarts: -1 is not allowed; it must be an integer from 0 to"),
    ],
)
def test_a_new_field_is_checked_by_its_type_where_it_has_no_rule_of_its_own(
    change: dict[str, object], sentence: str
) -> None:
    known: dict[str, Any] = {each.name: getattr(SPEC, each.name) for each in fields(SPEC)}
    validation.validate_spec(WiderSpec(**known))
    refused(sentence, validation.validate_spec, WiderSpec(**known | change))


def test_a_new_field_of_another_type_needs_a_rule() -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class WithMachines(RecordingSpec):
        machines: tuple[str, ...] = ()

    known = {each.name: getattr(SPEC, each.name) for each in fields(SPEC)}
    with pytest.raises(TypeError, match=r"no rule for \['machines'\] in _SPEC_RULES"):
        validation.validate_spec(WithMachines(**known))


def test_a_configuration_that_contains_itself_is_refused() -> None:
    nested: dict[str, object] = {}
    nested["again"] = nested
    refused("nested at most 16 levels deep", validation.validate_spec, replace(SPEC, config=nested))


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
    for field in ("finished_at", "sent_at"):
        naive = Ending(**{field: datetime(2025, 1, 1)})  # type: ignore[arg-type]
        refused(f"{field}: ", validation.validate_ending, naive)
    refused(
        "remarks: 21 entries are not allowed; it must be at most 20",
        validation.validate_ending,
        Ending(remarks=("no step was made",) * 21),
    )
    refused("remarks: '' is not allowed", validation.validate_ending, Ending(remarks=("",)))


QUERY = TargetQuery(family="demo", lr=1e-3)


@pytest.mark.parametrize(
    ("call", "question", "sentence"),
    [
        (validation.validate_query, replace(QUERY, lr=-1.0), "lr: -1.0"),
        (
            validation.validate_query,
            replace(QUERY, policy="guess"),
            "policy: 'guess' is not allowed; it must be one of exact",
        ),
        (
            validation.validate_query,
            replace(QUERY, depth="guess"),
            "depth: 'guess' is not allowed; it must be one of split, coherent, root",
        ),
        (validation.validate_query, replace(QUERY, names=("a", "")), "names: '' is not allowed"),
        (
            validation.validate_query,
            replace(QUERY, names=("a", "b"), shapes=((),)),
            "it must be none, or 2",
        ),
        (
            validation.validate_query,
            replace(QUERY, blocks=("a.*.b",)),
            "blocks: 'a.*.b' is not an axis",
        ),
        (validation.validate_query, replace(QUERY, step=-1), "step: -1"),
        (validation.validate_best_query, BestQuery(family="demo", role="x"), "role: 'x'"),
        (
            validation.validate_trajectory_query,
            TrajectoryQuery(recording_id="x"),
            "recording_id: 'x'",
        ),
        (
            validation.validate_trajectory_query,
            TrajectoryQuery(recording_id=UUID, max_points=-1),
            "max_points: -1",
        ),
        (
            validation.validate_filter,
            RecordingFilter(status="done"),
            "status: 'done' is not allowed; it must be one of running",
        ),
        (validation.validate_filter, RecordingFilter(lr_min=NAN), "lr_min: nan"),
        (
            validation.validate_page_size,
            1001,
            "page_size: 1001 is not allowed; it must be an integer from 0 to 1000",
        ),
    ],
)
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
