"""What a recording says about the run that made it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from flerm_core.bands import bands_of
from flerm_core.errors import InvalidInput
from flerm_core.measure.estimator import Subject
from flerm_core.recording import EstimatorSettings, ParameterList


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What the user says of a run beyond what is measured: where it is reported, as what, with which labels."""

    registry: str | None = None
    token: str | None = None
    spool: Any = None
    role: str = "base"
    variant: str = "plain"
    tags: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)


def parameter_list(subject: Subject, overrides: Mapping[str, str] | None) -> ParameterList:
    """The subject's tensors and then its roles, with their bands; `overrides` maps name patterns to bands."""
    names = (*subject.parameters, *subject.roles)
    shapes = (*(tuple(p.shape) for p in subject.parameters.values()), *(() for _ in subject.roles))
    return ParameterList(names, shapes, tuple(bands_of(names, shapes, overrides=overrides)))


def versions() -> dict[str, str]:
    """What computed: flerm, torch and Python."""
    try:
        own = version("flerm")
    except PackageNotFoundError:
        own = "unknown"
    return {"flerm": own, "torch": torch.__version__, "python": platform.python_version()}


def check_settings(settings: EstimatorSettings) -> None:
    """Raises `InvalidInput` naming the first count that is out of range. `every` 0 means once, at `start`."""
    for name, least in (("every", 0), ("warmup", 1), ("samples", 1), ("start", 1)):
        value = getattr(settings, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InvalidInput(f"{name}={value!r} is not allowed; a whole number from {least} is")
