"""What a recording says about the run that made it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from importlib import metadata
from typing import Any

from torch import nn

from flerm_core.errors import InvalidInput
from flerm_core.measure.measured_model import MeasuredModel
from flerm_core.parameter_bands import bands_of
from flerm_core.records.recording import EstimatorSettings, ParameterList, RecordingSpec
from flerm_core.records.validation import MAX_CONFIG_BYTES

OMITTABLE = ("config", "optimizer", "versions", "git", "world_size")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMetadata:
    """What is said of a run beyond what is measured: where it is reported, as what, with which labels.

    `config` is the user's; `found` the model's own, recorded below it. `omit`: of `OMITTABLE`, what is not recorded by itself.
    """

    registry: str | None = None
    token: str | None = None
    spool: Any = None
    role: str = "base"
    variant: str = "plain"
    tags: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    found: Mapping[str, Any] = field(default_factory=dict)
    omit: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.omit:
            if name not in OMITTABLE:
                raise InvalidInput(
                    f"omit: {name!r} is nothing that is recorded by itself; allowed are {', '.join(OMITTABLE)}"
                )

    @classmethod
    def of(
        cls,
        model: nn.Module,
        *,
        registry: str | None,
        token: str | None,
        spool: Any,
        role: str,
        variant: str,
        tags: Mapping[str, str] | None,
        config: Mapping[str, Any] | None,
        omit: Sequence[str],
    ) -> RunMetadata:
        """What users say, and what `model` says of itself. `registry` None: that of the environment."""
        return cls(
            registry=registry or os.environ.get("FLERM_REGISTRY") or None,
            token=token,
            spool=spool,
            role=role,
            variant=variant,
            tags=tags or {},
            config=config or {},
            found=model_config(model),
            omit=omit,
        )

    def looked_up(self) -> RunMetadata:
        """The same with the versions of all that computes: asked of the disk and of git, so once, before training."""
        return replace(
            self, versions={} if "versions" in self.omit else versions(git="git" not in self.omit)
        )

    def complete(self, spec: RecordingSpec) -> RecordingSpec:
        """`spec` with all that is recorded by itself, and without what the user omits."""
        omitted: dict[str, Any] = {}
        if "optimizer" in self.omit:
            omitted |= {"optimizer": "", "optimizer_config": {}}
        if "world_size" in self.omit:
            omitted |= {"world_size": 1}
        return replace(
            spec,
            config=dict(self.config) if "config" in self.omit else {**self.found, **self.config},
            versions=self.versions,
            **omitted,
        )


def model_config(model: nn.Module) -> dict[str, Any]:
    """What a model says of itself: its class, its number of parameters, and its `config` if it has one (a mapping, a dataclass,
    or an object with `to_dict`, as of transformers). Values that JSON does not know are written as text."""
    found: dict[str, Any] = {
        "model": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    own = getattr(model, "config", None)
    content: Any = None
    if isinstance(own, Mapping):
        content = own
    elif is_dataclass(own) and not isinstance(own, type):
        content = asdict(own)
    elif callable(getattr(own, "to_dict", None)):
        content = own.to_dict()  # type: ignore[union-attr]
    if isinstance(content, Mapping):
        whole = {**found, "config": _jsonable(content)}
        # One that is too long for a recording is left out: what is found by itself must not stop a run.
        if len(json.dumps(whole)) <= MAX_CONFIG_BYTES // 2:
            return whole
    return found


def _jsonable(value: Any, depth: int = 0) -> Any:
    if isinstance(value, Mapping) and depth < 8:
        return {
            _text(str(key))[:256] or "_": _jsonable(item, depth + 1) for key, item in value.items()
        }
    if isinstance(value, list | tuple) and depth < 8:
        return [_jsonable(item, depth + 1) for item in value]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float) and math.isfinite(value) and abs(value) < 2**53:
        return value
    return _text(str(value))


def _text(value: str) -> str:
    return "".join(each if each.isprintable() else " " for each in value)


def parameter_list(subject: MeasuredModel, overrides: Mapping[str, str] | None) -> ParameterList:
    """The subject's tensors and then its roles, with their bands; `overrides` maps name patterns to bands."""
    names = (*subject.parameters, *subject.depth_groups)
    shapes = (
        *(tuple(p.shape) for p in subject.parameters.values()),
        *(() for _ in subject.depth_groups),
    )
    return ParameterList(names, shapes, tuple(bands_of(names, shapes, overrides=overrides)))


def check_settings(settings: EstimatorSettings) -> None:
    """Raises `InvalidInput` naming the first count that is out of range. `every` 0 means once, at `start`."""
    for name, least in (("every", 0), ("warmup", 1), ("samples", 1), ("start", 1)):
        value = getattr(settings, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InvalidInput(f"{name}={value!r} is not allowed; a whole number from {least} is")


def versions(*, git: bool = True) -> dict[str, str]:
    """The software of a run: python, flerm, numpy, torch, and the working directory's git commit.

    A commit with uncommitted changes is marked `+changes`. A version that cannot be found out is
    left out; this raises nothing.
    """
    found = {"python": sys.version.split()[0]}
    for package in ("flerm", "numpy", "torch"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if git and (commit := _git_commit()):
        found["git"] = commit
    return found


def _git_commit() -> str:
    command = ["git", "describe", "--always", "--abbrev=40", "--match=", "--dirty=+changes"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5.0, check=False)
    except (OSError, subprocess.TimeoutExpired):  # no git, or a very slow file system
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
