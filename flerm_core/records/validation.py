"""Validation of whole objects that are stored or asked for, the same in server, spool and client.

Every function returns nothing, or raises `InvalidInput` in one sentence with the field, the value
and what is allowed. The limits are such that a message stays below gRPC's default limit of 4 MiB in
ordinary use.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import cache, partial
from typing import Any, get_type_hints

from flerm_core.parameter_bands import BANDS
from flerm_core.parameter_names import as_axes
from flerm_core.records.checks import (
    check,
    check_choice,
    check_count,
    check_integer,
    check_json,
    check_number,
    check_prose,
    check_text,
    check_timestamp,
    check_uuid,
)
from flerm_core.records.queries import (
    DEPTH_RULE_NAMES,
    POLICIES,
    BestQuery,
    RecordingFilter,
    TargetQuery,
    TrajectoryQuery,
)
from flerm_core.records.recording import (
    ENDING_STATUSES,
    ESTIMATORS,
    ROLES,
    STATUSES,
    Attempt,
    Ending,
    EstimatorSettings,
    ParameterList,
    RecordingSpec,
)

Rule = Callable[[str, Any], None]
"""A check of a field: takes its name and its value, and raises `InvalidInput`."""

MAX_FAMILY_PART = 100  # characters of a family's name, and of its team's
MAX_DESCRIPTION = 4_096
MAX_BLOCKS = 16
MAX_PARAMETERS = 20_000
MAX_PARAMETER_NAME = 512
MAX_DIMENSIONS = 16
MAX_ROWS = 1_000  # measurements of one request
MAX_PARTS = 50  # recordings of one request to import them
MAX_CONFIG_BYTES = 65_536  # as JSON
MAX_TAGS = 64
MAX_TAG_KEY = 64
MAX_TAG_VALUE = 1_024
MAX_SCALARS = 64
MAX_VECTORS = 16
MAX_SOURCES = 1_000
MAX_REMARKS = 20
MAX_REMARK = 1_000
MAX_PAGE_SIZE = 1_000
MAX_LABEL = 128  # optimiser, variant, ...
MAX_MOMENT = 253_402_300_799_999_999  # microseconds since 1970: the last of year 9999

_PART = rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_FAMILY_PART - 1}}}"
_FAMILY = re.compile(rf"({_PART})(/{_PART})?")
RESERVED = (
    "best",
    "losses",
    "transfer",
    "figure",
    "recordings",
    "targets",
)  # paths that REST has below a family's name
_VARIANT = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def validate_family_name(name: str) -> None:
    """`name` or `team/name`: letters, digits, `.`, `_`, `-`; each begins with a letter or digit."""
    check(
        isinstance(name, str) and _FAMILY.fullmatch(name) is not None,
        "family",
        name,
        f"'name' or 'team/name', each of 1 to {MAX_FAMILY_PART} letters, digits, '.', '_' or '-', "
        "the first a letter or digit",
    )


def validate_new_family_name(name: str) -> None:
    """The name of a family that comes into being: none that REST has below a team's name."""
    validate_family_name(name)
    team, _, own = name.rpartition("/")
    check(
        not team or own not in RESERVED,
        "family",
        name,
        f"another name than {', '.join(RESERVED)} within a team",
    )


def validate_family(name: str, description: str = "", blocks: Sequence[str] = ()) -> None:
    """The values that a family is registered with."""
    validate_new_family_name(name)
    check_prose("description", description, MAX_DESCRIPTION)
    _validate_blocks(blocks)


def validate_spec(spec: RecordingSpec) -> None:
    """A recording's specification, its parameters included."""
    spec_type: type = type(spec)
    for name, rule in _spec_rules(spec_type).items():
        rule(name, getattr(spec, name))


@cache
def _spec_rules(spec_type: type) -> Mapping[str, Rule]:
    """The rule of each field of a specification: from `_SPEC_RULES`, or by the field's type.

    Raises `TypeError` for a field that has neither, so that no field goes unchecked.
    """
    hints = get_type_hints(spec_type)
    by_type: dict[Any, Rule] = {str: _label, int: check_integer}
    others = [each.name for each in fields(spec_type) if each.name not in _SPEC_RULES]
    missing = [name for name in others if hints[name] not in by_type]
    if missing:
        raise TypeError(f"{spec_type.__name__}: no rule for {missing} in _SPEC_RULES")
    return {**_SPEC_RULES, **{name: by_type[hints[name]] for name in others}}


def validate_parameters(parameters: ParameterList) -> None:
    """At least one parameter; names unique; sizes from 0; bands of `BANDS`."""
    names, shapes, bands = parameters.names, parameters.shapes, parameters.bands
    check(len(names) > 0, "parameters.names", list(names), "at least one name")
    check_count("parameters.names", names, MAX_PARAMETERS)
    check(
        len(shapes) == len(names),
        "parameters.shapes",
        f"{len(shapes)} shapes",
        f"one shape for each of the {len(names)} names",
    )
    check(
        len(bands) == len(names),
        "parameters.bands",
        f"{len(bands)} bands",
        f"one band for each of the {len(names)} names",
    )
    seen: set[str] = set()
    for name, shape, band in zip(names, shapes, bands, strict=True):
        check_text("parameters.names", name, MAX_PARAMETER_NAME, least=1)
        check(name not in seen, "parameters.names", name, "there only once")
        seen.add(name)
        check(
            len(shape) <= MAX_DIMENSIONS,
            f"shape of {name}",
            list(shape),
            f"of at most {MAX_DIMENSIONS} dimensions",
        )
        for size in shape:
            check_integer(f"shape of {name}", size)
        check_choice(f"band of {name}", band, BANDS)


def validate_estimator(settings: EstimatorSettings) -> None:
    """Estimator settings."""
    check_choice("estimator.name", settings.name, ESTIMATORS)
    check_integer("estimator.samples", settings.samples, 1, 1_000_000)
    check_integer("estimator.warmup", settings.warmup, 1, 1_000_000)
    check_integer("estimator.every", settings.every)  # 0: once, at `start`
    check_integer("estimator.start", settings.start, 1)
    check_text("estimator.output_weight", settings.output_weight, MAX_PARAMETER_NAME)
    check_text("estimator.output_bias", settings.output_bias, MAX_PARAMETER_NAME)


def validate_attempt(attempt: Attempt) -> None:
    """An attempt at its start."""
    check_uuid("attempt_id", attempt.id)
    check_integer("resume_at", attempt.resume_at)
    check_timestamp("started_at", attempt.started_at)
    if attempt.sent_at is not None:
        check_timestamp("sent_at", attempt.sent_at)
    if attempt.after:
        check_uuid("after", attempt.after)


def validate_ending(ending: Ending) -> None:
    """How an attempt ends."""
    check_choice("status", ending.status, ENDING_STATUSES)
    if ending.final_loss is not None:
        check_number("final_loss", ending.final_loss)
    if ending.final_step is not None:
        check_integer("final_step", ending.final_step)
    if ending.tokens is not None:
        check_integer("tokens", ending.tokens)
    check_count("remarks", ending.remarks, MAX_REMARKS)
    for remark in ending.remarks:
        check_text("remarks", remark, MAX_REMARK, least=1)
    for field, moment in (("finished_at", ending.finished_at), ("sent_at", ending.sent_at)):
        if moment is not None:
            check_timestamp(field, moment)


def validate_filter(filters: RecordingFilter) -> None:
    """A filter of recordings."""
    if filters.family:
        validate_family_name(filters.family)
    for field, rate in (("lr_min", filters.lr_min), ("lr_max", filters.lr_max)):
        if rate is not None:
            check_number(field, rate, low=0)
    if filters.role:
        check_choice("role", filters.role, ROLES)
    if filters.status:
        check_choice("status", filters.status, STATUSES)
    check_text("variant", filters.variant, MAX_LABEL)
    check_text("optimizer", filters.optimizer, MAX_LABEL)
    _validate_tags("tags", filters.tags)
    for field, moment in (
        ("created_after", filters.created_after),
        ("created_before", filters.created_before),
    ):
        if moment is not None:
            check_timestamp(field, moment)


def validate_tagging(recording_id: str, tags: Mapping[str, str], remove: Sequence[str]) -> None:
    """Tags to set on a recording and keys to remove; no key in both."""
    check_uuid("recording_id", recording_id)
    _validate_tags("set", tags)
    check_count("remove", remove, MAX_TAGS)
    for key in remove:
        check_text("remove", key, MAX_TAG_KEY, least=1)
        check(key not in tags, "remove", key, "a key that is not set in the same request")


def validate_page_size(page_size: int) -> None:
    """0 (the server's choice) to `MAX_PAGE_SIZE`."""
    check_integer("page_size", page_size, 0, MAX_PAGE_SIZE)


def validate_query(query: TargetQuery) -> None:
    """A query for targets."""
    validate_family_name(query.family)
    check_number("lr", query.lr, above=0)
    check_choice("policy", query.policy, POLICIES)
    if query.depth:
        check_choice("depth", query.depth, DEPTH_RULE_NAMES)
    check_count("names", query.names, MAX_PARAMETERS)
    for name in query.names:
        check_text("names", name, MAX_PARAMETER_NAME, least=1)
    check(
        len(query.shapes) in (0, len(query.names)),
        "shapes",
        f"{len(query.shapes)} shapes",
        f"none, or {len(query.names)}",
    )
    for name, shape in zip(query.names, query.shapes, strict=False):
        check(
            len(shape) <= MAX_DIMENSIONS,
            f"shape of {name}",
            list(shape),
            f"of at most {MAX_DIMENSIONS} dimensions",
        )
    _validate_blocks(query.blocks)
    check_text("optimizer", query.optimizer, MAX_LABEL)
    _validate_config("optimizer_config", query.optimizer_config or {})
    if query.estimator is not None:
        validate_estimator(query.estimator)
    _validate_tags("tags", query.tags)
    if query.step is not None:
        check_integer("step", query.step)


def validate_best_query(query: BestQuery) -> None:
    """A query for the best learning rate."""
    validate_family_name(query.family)
    check_choice("role", query.role, ROLES)
    check_text("variant", query.variant, MAX_LABEL)
    check_text("optimizer", query.optimizer, MAX_LABEL)
    _validate_tags("tags", query.tags)
    check_count("pick", query.pick, MAX_TAGS)
    for key, value in query.pick.items():
        check_text("a key of pick", key, MAX_LABEL, least=1)
        check_text(f"pick.{key}", value, MAX_CONFIG_BYTES)


def validate_trajectory_query(query: TrajectoryQuery) -> None:
    """A query for a trajectory."""
    check_uuid("recording_id", query.recording_id)
    for field, step in (("first_step", query.first_step), ("last_step", query.last_step)):
        if step is not None:
            check_integer(field, step)
    check_text("pattern", query.pattern, MAX_PARAMETER_NAME)
    check_integer("max_points", query.max_points)


def _validate_blocks(blocks: Sequence[str]) -> None:
    check_count("blocks", blocks, MAX_BLOCKS)
    for axis in blocks:
        check_text("blocks", axis, MAX_PARAMETER_NAME, least=1)
    as_axes(blocks)


def _validate_config(field: str, config: Mapping[str, object]) -> None:
    check_json(field, config)
    size = len(json.dumps(config))
    check(size <= MAX_CONFIG_BYTES, field, f"{size} bytes of JSON", f"at most {MAX_CONFIG_BYTES}")


def _validate_tags(field: str, tags: Mapping[str, str]) -> None:
    check_count(field, tags, MAX_TAGS)
    for key, value in tags.items():
        check_text(f"a key of {field}", key, MAX_TAG_KEY, least=1)
        check_text(f"{field}.{key}", value, MAX_TAG_VALUE)


def _label(field: str, value: object) -> None:
    check_text(field, value, MAX_LABEL)


def _validate_variant(field: str, variant: str) -> None:
    holds = isinstance(variant, str) and _VARIANT.fullmatch(variant) is not None
    check(holds, field, variant, "1 to 64 of a-z, 0-9, '.', '_' and '-'")


def _validate_sources(field: str, sources: Sequence[str]) -> None:
    check_count(field, sources, MAX_SOURCES)
    for source in sources:
        check_uuid(field, source)


# The fields of RecordingSpec that need a rule of their own. Other texts are labels of at most
# MAX_LABEL characters, other integers are from 0 on.
_SPEC_RULES: Mapping[str, Rule] = {
    "id": check_uuid,
    "family": lambda field, value: validate_new_family_name(value),
    "lr": partial(check_number, above=0),
    "seed": partial(check_integer, low=-(2**63), high=2**63 - 1),
    "role": partial(check_choice, choices=ROLES),
    "variant": _validate_variant,
    "optimizer_config": _validate_config,
    "config": _validate_config,
    "estimator": lambda field, value: validate_estimator(value),
    "tags": _validate_tags,
    "versions": _validate_tags,
    "world_size": partial(check_integer, low=1),
    "targets_sources": _validate_sources,
    "parameters": lambda field, value: validate_parameters(value),
}
