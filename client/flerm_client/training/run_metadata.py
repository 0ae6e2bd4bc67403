"""What a recording says about the run that made it."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from importlib import metadata
from typing import Any

from torch import nn

from flerm_client.training.git_commit import git_commit
from flerm_client.training.run_options import RunOptions
from flerm_core.errors import InvalidInput, printable
from flerm_core.measure.measured_model import MeasuredModel
from flerm_core.parameter_bands import bands_of
from flerm_core.records.batch_size import BATCH_SIZE
from flerm_core.records.checks import check_integer
from flerm_core.records.recording import ParameterList, RecordingSpec
from flerm_core.records.validation import MAX_CONFIG_BYTES

OMITTABLE = ("config", "optimizer", "versions", "git", "world_size")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMetadata:
    """Where a run is reported, and what is said of it beyond its measurements.

    options: the user's registry, token, spool, role, variant, tags, config and `omit`.
    registry: the address from `options` or else the environment; None: the run is not reported.
    model_config: what the model says of itself. The user's `config` takes precedence.
    versions: of the software, by package; empty until `with_versions`.
    """

    options: RunOptions
    registry: str | None
    model_config: Mapping[str, Any]
    versions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, options: RunOptions, model: MeasuredModel) -> RunMetadata:
        """What the user and the model say. Raises `InvalidInput` for what cannot be omitted."""
        for name in options.omit:
            if name not in OMITTABLE:
                raise InvalidInput(
                    f"omit: {name!r} is nothing that is recorded by itself; "
                    f"allowed are {', '.join(OMITTABLE)}"
                )
        _check_batch_size(options)
        registry = options.registry or os.environ.get("FLERM_REGISTRY") or None
        return cls(options=options, registry=registry, model_config=model_config(model.module))

    def _batch_size(self) -> dict[str, int]:
        size = self.options.batch_size
        return {} if size is None else {BATCH_SIZE: int(size)}

    def with_versions(self) -> RunMetadata:
        """The same with the versions of the software.

        Finding them reads the disk and runs git, so this is called once, before training.
        """
        omit = self.options.omit
        return replace(self, versions={} if "versions" in omit else versions(git="git" not in omit))

    def fill(self, spec: RecordingSpec) -> RecordingSpec:
        """`spec` with all that is recorded without being asked for, less what the user omits."""
        options = self.options
        config = {} if "config" in options.omit else dict(self.model_config)
        spec = replace(
            spec,
            role=options.role,
            variant=options.variant,
            tags=options.tags or {},
            config=config | dict(options.config or {}) | self._batch_size(),
            versions=self.versions,
        )
        if "optimizer" in options.omit:
            spec = replace(spec, optimizer="", optimizer_config={})
        if "world_size" in options.omit:
            spec = replace(spec, world_size=1)
        return spec


def _check_batch_size(options: RunOptions) -> None:
    size = options.batch_size
    if size is None:
        return
    check_integer(BATCH_SIZE, size, 1)
    said = (options.config or {}).get(BATCH_SIZE, size)
    if said != size:
        raise InvalidInput(
            f"batch_size={size}, but config has batch_size {said!r}: leave one of the two out"
        )


def model_config(model: nn.Module) -> dict[str, Any]:
    """What a model says of itself: its class, its number of parameters, and its `config`.

    `model.config` may be a mapping, a dataclass, or an object with `to_dict` (transformers). Values
    that JSON does not know are written as text. A config that is too long for a recording is left
    out: what the user did not ask for must not stop a run.
    """
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
    if not isinstance(content, Mapping):
        return found
    with_config = found | {"config": _jsonable(content)}
    return with_config if len(json.dumps(with_config)) <= MAX_CONFIG_BYTES // 2 else found


def _jsonable(value: Any, depth: int = 0) -> Any:
    """`value` with plain JSON values in its place, nested at most 8 deep."""
    if isinstance(value, Mapping) and depth < 8:
        return {
            printable(str(key))[:256] or "_": _jsonable(item, depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple) and depth < 8:
        return [_jsonable(item, depth + 1) for item in value]
    if value is None or isinstance(value, bool):
        return value
    # Beyond 2**53 a JSON number is no longer exact.
    if isinstance(value, int | float) and math.isfinite(value) and abs(value) < 2**53:
        return value
    return printable(str(value))


def parameter_list(model: MeasuredModel, band_overrides: Mapping[str, str] | None) -> ParameterList:
    """The tensors of `model`, then its depth groups, each with its band.

    `band_overrides` maps name patterns to bands.
    """
    names = (*model.parameters, *model.depth_groups)
    shapes = (
        *(tuple(p.shape) for p in model.parameters.values()),
        *(() for _ in model.depth_groups),
    )
    return ParameterList(names, shapes, tuple(bands_of(names, shapes, overrides=band_overrides)))


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
    if git and (commit := git_commit(".")):
        found["git"] = commit
    return found
