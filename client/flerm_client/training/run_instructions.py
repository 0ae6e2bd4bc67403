"""What the environment tells a training script: whether to record or match, and under which labels.

A sweep writes these variables for each of its runs, and `FLeRM.auto` reads them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from flerm_core.errors import InvalidInput

MODES = ("record", "match", "dry-run")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInstructions:
    """One run's variables.

    mode (FLERM_MODE): "record", "match", or "dry-run" for a match that ends at its first
        measurement.
    family (FLERM_FAMILY), lr (FLERM_LR: a number, or "best" for a match), seed (FLERM_SEED), role
        (FLERM_ROLE), variant (FLERM_VARIANT), config (FLERM_CONFIG: a JSON object), tags
        (FLERM_TAGS: key=value,key=value): as in `FLeRM.record`; None or empty: as the script says.
    source_tags (FLERM_SOURCE_TAGS, as FLERM_TAGS): as in `FLeRM.match`.
    judged_later (FLERM_OBJECTIVE=later): the losses that the script logs are not the run's
        objective; whoever started the script adds the final loss afterwards.
    """

    mode: str
    family: str | None = None
    lr: float | str | None = None
    seed: int | None = None
    role: str | None = None
    variant: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    source_tags: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    judged_later: bool = False

    @classmethod
    def from_environment(cls, variables: Mapping[str, str] = os.environ) -> Self | None:
        """What `variables` say; None where FLERM_MODE is unset or empty: there is nothing to do.

        Raises `InvalidInput` for a variable of another form, naming it.
        """
        mode = variables.get("FLERM_MODE", "")
        if not mode:
            return None
        if mode not in MODES:
            raise InvalidInput(
                f"FLERM_MODE is {mode!r}, but it must be one of {', '.join(MODES)}, or unset"
            )
        return cls(
            mode=mode,
            family=variables.get("FLERM_FAMILY") or None,
            lr=_rate(variables.get("FLERM_LR", "")),
            seed=_seed(variables.get("FLERM_SEED", "")),
            role=variables.get("FLERM_ROLE") or None,
            variant=variables.get("FLERM_VARIANT") or None,
            tags=_tags("FLERM_TAGS", variables),
            source_tags=_tags("FLERM_SOURCE_TAGS", variables),
            config=_config(variables.get("FLERM_CONFIG", "")),
            judged_later=_judged_later(variables.get("FLERM_OBJECTIVE", "")),
        )

    def variables(self) -> dict[str, str]:
        """All variables that `from_environment` reads; what is not said is empty.

        Raises `InvalidInput` for a tag that has a comma.
        """
        return {
            "FLERM_MODE": self.mode,
            "FLERM_FAMILY": self.family or "",
            "FLERM_LR": "" if self.lr is None else str(self.lr),
            "FLERM_SEED": "" if self.seed is None else str(self.seed),
            "FLERM_ROLE": self.role or "",
            "FLERM_VARIANT": self.variant or "",
            "FLERM_TAGS": _tags_text(self.tags),
            "FLERM_SOURCE_TAGS": _tags_text(self.source_tags),
            "FLERM_CONFIG": json.dumps(dict(self.config)) if self.config else "",
            "FLERM_OBJECTIVE": "later" if self.judged_later else "",
        }

    @property
    def method(self) -> str:
        """The name of the method of `FLeRM` that carries the instructions out."""
        return "record" if self.mode == "record" else "match"

    def keywords(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The keywords of `method`: those `given` by the script, and over them the instructions.

        Tags and configuration of both are put together.
        """
        said = {
            "family": self.family,
            "lr": self.lr,
            "seed": self.seed,
            "role": self.role,
            "variant": self.variant,
        }
        found = dict(given) | {name: value for name, value in said.items() if value is not None}
        if not found.get("family"):
            raise InvalidInput(
                f"FLERM_MODE is {self.mode!r}, but no family is named: set FLERM_FAMILY, or give "
                "family="
            )
        found["tags"] = {**(given.get("tags") or {}), **self.tags}
        found["config"] = {**(given.get("config") or {}), **self.config}
        if self.method == "match":
            found["dry_run"] = self.mode == "dry-run"
            found["source_tags"] = {**(given.get("source_tags") or {}), **self.source_tags}
        return found


def _rate(text: str) -> float | str | None:
    if text in ("", "best"):
        return text or None
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0.0 < rate < math.inf:
        raise InvalidInput(f"FLERM_LR is {text!r}, but it must be a number above 0, or best")
    return rate


def _seed(text: str) -> int | None:
    if not text:
        return None
    if not text.isdecimal():
        raise InvalidInput(f"FLERM_SEED is {text!r}, but it must be a whole number from 0 on")
    return int(text)


def _tags(name: str, variables: Mapping[str, str]) -> dict[str, str]:
    pairs = {}
    for part in filter(None, variables.get(name, "").split(",")):
        key, equals, value = part.partition("=")
        if not (key and equals):
            raise InvalidInput(
                f"{name}: {part!r} is no tag, but the variable must be key=value,key=value"
            )
        pairs[key] = value
    return pairs


def _tags_text(tags: Mapping[str, str]) -> str:
    for key, value in tags.items():
        if "," in f"{key}{value}" or "=" in key:
            raise InvalidInput(
                f"tags: {key}={value} has a comma, or an equals sign in its key; neither can be "
                "passed on to a script"
            )
    return ",".join(f"{key}={value}" for key, value in tags.items())


def _config(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InvalidInput(f"FLERM_CONFIG is {text!r}, but it must be a JSON object")
    return found


def _judged_later(text: str) -> bool:
    if text not in ("", "later"):
        raise InvalidInput(f"FLERM_OBJECTIVE is {text!r}, but it must be later, or unset")
    return text == "later"
