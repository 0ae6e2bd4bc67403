"""A user's own training command: its placeholders, its scales, and where a run's loss is found."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flerm_core.errors import InvalidInput, NotFound
from flerm_core.records.recording import content_digest
from flerm_experiments.sweep.objective_line import last_value
from flerm_experiments.sweep.run_limits import RunLimits
from flerm_experiments.sweep.search_space import SearchSpace, Value

_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{(\w+)\}")
GIVEN = ("lr", "seed", "folder")
"""The placeholders that every command has; `folder` is the run's own folder."""


@dataclass(frozen=True, slots=True)
class CommandScale:
    """Which model a command trains: the value of each key, and the base's value of the same key.

    values, base: pairs of key and value with the same keys, in the order of the sweep file.
    """

    values: tuple[tuple[str, Value], ...]
    base: tuple[tuple[str, Value], ...]

    @property
    def differing(self) -> tuple[str, ...]:
        """The keys whose values are not the base's."""
        before = dict(self.base)
        return tuple(key for key, value in self.values if value != before[key])

    @property
    def label(self) -> str:
        """The scale as a table names it: `width 512, depth 8`; `base` where nothing differs."""
        now = dict(self.values)
        return ", ".join(f"{key} {now[key]}" for key in self.differing) or "base"

    @property
    def width(self) -> float:
        """How many times as wide as the base, by the key `width`; 1 where there is none."""
        now, before = dict(self.values).get("width"), dict(self.base).get("width")
        numbers = isinstance(now, int | float) and isinstance(before, int | float)
        return now / before if numbers and now > 0 and before > 0 else 1.0  # type: ignore[operator]


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Where the loss of a run is found, if not in `flerm.log`.

    line: a regular expression with one group, for the run's output. The last match is taken
        (`last_value`).
    file, key: a JSON file, and the path of the loss in it, such as `eval.loss`. In a file of JSON
        lines, the last line with the key is taken.

    Either `line` or `file` and `key` are given.

    Raises `InvalidInput` for anything else.
    """

    line: str = ""
    file: str = ""
    key: str = ""

    def __post_init__(self) -> None:
        if bool(self.line) == bool(self.file) or bool(self.file) != bool(self.key):
            raise InvalidInput("objective must have either line, or file and key")
        if not self.line:
            return
        try:
            groups = re.compile(self.line).groups
        except re.error as error:
            raise InvalidInput(
                f"objective.line is {self.line!r}, but it must be a regular expression ({error})"
            ) from error
        if groups != 1:
            raise InvalidInput(
                f"objective.line is {self.line!r} with {groups} groups, but it must have one: "
                "the loss"
            )

    def read(self, output: Path, places: Mapping[str, str]) -> float:
        """The loss of a run; infinite where it is not a finite number.

        output: the file with what the run printed.
        places: the placeholders of `file`.

        Raises `NotFound` where there is no loss.
        """
        if self.line:
            found = last_value(self.line, output.read_text(errors="replace"))
            if found is None:
                raise NotFound(f"objective: no line of {output} matches {self.line!r}")
            return _number(found, f"objective: {found!r} in {output}")
        path = Path(fill(self.file, places))
        try:
            content = path.read_text()
        except OSError as error:
            raise NotFound(f"objective: {path} cannot be read ({error.strerror})") from error
        values = [value for each in _documents(content) for value in self._at(each)]
        if not values:
            raise NotFound(f"objective: {path} has no {self.key}")
        return _number(values[-1], f"objective: {self.key} of {path}, {values[-1]!r},")

    def _at(self, document: Any) -> list[Any]:
        """The value of the key in a document; empty where the document does not have the key."""
        for part in self.key.split("."):
            if not (isinstance(document, dict) and part in document):
                return []
            document = document[part]
        return [document]


def _documents(text: str) -> list[Any]:
    try:
        return [json.loads(text)]
    except ValueError:
        pass
    found = []
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def _number(value: Any, what: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise NotFound(f"{what} is no number") from None
    return number if math.isfinite(number) else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A training command with placeholders, and how it is run.

    text: the command line, split as a shell splits it and run without one; `{name}` stands for a
        value, `{{` and `}}` for braces.
    base, target: pairs of key and value.
    objective: None: the loss that `flerm.log` is told.
    limits: of one run.
    search: what is tuned on the base before the curve of its rates; None: nothing.
    folder: for outputs, a folder for each run.
    directory: where the command runs.
    """

    text: str
    base: tuple[tuple[str, Value], ...]
    target: tuple[tuple[str, Value], ...]
    folder: Path
    directory: Path
    objective: Objective | None = None
    limits: RunLimits = field(default_factory=RunLimits)
    search: SearchSpace | None = None

    @property
    def base_scale(self) -> CommandScale:
        """The base's scale."""
        return CommandScale(self.base, self.base)

    @property
    def target_scale(self) -> CommandScale:
        """The big model's scale."""
        return CommandScale(self.target, self.base)

    @property
    def base_digest(self) -> str:
        """The same for all sweeps that have this base: command, values, and objective."""
        content: dict[str, Any] = {"command": self.text, "base": dict(self.base)}
        if self.objective is not None:
            content["objective"] = [self.objective.line, self.objective.file, self.objective.key]
        return content_digest(content)[:32]

    def with_values(self, values: Mapping[str, Value]) -> Command:
        """This command with `values` for the dimensions of its search, which is then over."""
        chosen = tuple(values.items())
        return replace(
            self, base=(*self.base, *chosen), target=(*self.target, *chosen), search=None
        )

    def words(self, values: Mapping[str, str]) -> tuple[str, ...]:
        """The command's words, with `values` for its placeholders."""
        return tuple(fill(word, values) for word in split(self.text))


def split(text: str) -> list[str]:
    """The words of a command line, as a shell splits it. Raises `InvalidInput` for none."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InvalidInput(f"command is {text!r}, which cannot be split: {error}") from error
    if not words:
        raise InvalidInput("command is empty, but it must be the command line of a training")
    return words


def placeholders(text: str) -> list[str]:
    """The names between braces, in their order."""
    return [found[1] for found in _PLACEHOLDER.finditer(text) if found[1]]


def fill(text: str, values: Mapping[str, str]) -> str:
    """`text` with `values` for its placeholders."""
    return _PLACEHOLDER.sub(
        lambda found: values[found[1]] if found[1] else found[0][0],
        text,
    )


def check_placeholders(text: str, keys: Iterable[str], *, several_seeds: bool) -> None:
    """Raises `InvalidInput` for a name that the command has wrongly, or lacks."""
    keys, found = list(keys), set(placeholders(text))
    for name in sorted(found - {*keys, *GIVEN}):
        allowed = ", ".join(f"{{{each}}}" for each in (*GIVEN, *keys))
        raise InvalidInput(
            f"command has {{{name}}}, which is no placeholder; allowed are {allowed}; braces of "
            "the command itself are doubled"
        )
    if "lr" not in found:
        raise InvalidInput("command has no {lr}, but every run must get its learning rate")
    for key in keys:
        if key not in found:
            raise InvalidInput(
                f"command has no {{{key}}}, but base and target, or the search, give it a value: "
                "all runs would be the same"
            )
    if several_seeds and "seed" not in found:
        raise InvalidInput(
            "command has no {seed}, but there are several seeds, which would all be the same "
            "training: add it, or set seeds and base_seeds to 1"
        )
