"""A sweep file with a command: its fields are checked, each mistake in one sentence."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flerm_core.errors import InvalidInput
from flerm_core.records.validation import validate_new_family_name
from flerm_experiments.sweep.command import (
    GIVEN,
    Command,
    CommandScale,
    Objective,
    check_placeholders,
    placeholders,
    split,
)
from flerm_experiments.sweep.early_stop import require_optuna
from flerm_experiments.sweep.run_limits import RunLimits
from flerm_experiments.sweep.search_space import Dimension, SearchSpace, Value

FIELDS = (
    *("command", "title", "family", "initial_lr", "rates", "lr_min", "lr_max"),
    *("base_seeds", "seeds", "variants", "base", "target", "cell", "objective", "run", "search"),
)
VARIANTS = ("plain", "matched")
"""What a command can be told: to train as it is, or matched."""
RUN = ("cpus", "gpus", "time_limit", "retries", "early_stop", "folder")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_BASE_SEEDS = 2
_TRIALS = 20


def command_sweep(
    content: Mapping[str, Any], name: str, directory: Path
) -> tuple[dict[str, Any], list[tuple[CommandScale, str, int | None]]]:
    """The fields of a `Sweep`, and its cells as (scale, variant, seeds).

    name: the sweep's.
    directory: that of the file, where the command runs.

    Raises `InvalidInput` for a field that is unknown, missing or out of its range.
    """
    _refuse_unknown("", content, FIELDS)
    for required in ("command", "base", "target"):
        if required not in content:
            raise InvalidInput(f"{required}: sweep {name!r} does not say it, but it must")
    seeds = _whole("seeds", content.get("seeds", 1), 1)
    base_seeds = _whole("base_seeds", content.get("base_seeds", _BASE_SEEDS), 1)
    command = _command(content, name, directory)
    searched = command.search.dimensions if command.search is not None else ()
    keys = [*(key for key, _ in command.base), *(each.name for each in searched)]
    check_placeholders(command.text, keys, several_seeds=max(seeds, base_seeds) > 1)
    family = _text("family", content.get("family", name))
    validate_new_family_name(family)
    fields = {
        "title": _text("title", content.get("title", "")),
        "family": family,
        "seeds": seeds,
        "base_seeds": base_seeds,
        "command": command,
        **_rates(content, name),
    }
    variants = _variants("variants", content.get("variants", list(VARIANTS)))
    cells: list[tuple[CommandScale, str, int | None]] = [
        (command.target_scale, variant, None) for variant in variants
    ]
    for table in content.get("cell", []):
        cells += _cells(table, command, variants)
    return fields, cells


def _command(content: Mapping[str, Any], name: str, directory: Path) -> Command:
    text = _text("command", content["command"])
    split(text)
    base, target = (_values(each, content[each]) for each in ("base", "target"))
    if dict(base).keys() != dict(target).keys():
        raise InvalidInput(
            f"target has {', '.join(dict(target)) or 'no keys'}, but it must have those of base: "
            f"{', '.join(dict(base))}"
        )
    if base == target:
        raise InvalidInput("target equals base, but it must be the bigger model")
    run = _table("run", content.get("run", {}), RUN)
    folder = _text("run.folder", run.get("folder", f"flerm-runs/{name}"))
    return Command(
        text=text,
        base=base,
        target=tuple((key, dict(target)[key]) for key, _ in base),
        folder=directory / folder,
        directory=directory,
        objective=_objective(content["objective"]) if "objective" in content else None,
        limits=RunLimits(
            cpus=_whole("run.cpus", run.get("cpus", 1), 1),
            gpus=_whole("run.gpus", run.get("gpus", 0), 0),
            time_limit=_seconds(run["time_limit"]) if "time_limit" in run else None,
            retries=_whole("run.retries", run.get("retries", 0), 0),
            early_stop=_early_stop(run.get("early_stop", False)),
        ),
        search=_search(content["search"], dict(base)) if "search" in content else None,
    )


def _search(table: Any, base: Mapping[str, Value]) -> SearchSpace:
    if not isinstance(table, dict) or set(table) <= {"trials"}:
        raise InvalidInput(
            f"search is {table!r}, but it must be a table of what is tuned, such as "
            "decay = [0.0, 0.1]"
        )
    require_optuna("[search]")
    dimensions = []
    for name, value in table.items():
        if name == "trials":
            continue
        _check_key("search", name)
        if name in base:
            raise InvalidInput(
                f"search.{name} has a value in base and target, but it must have either these or a "
                "place in the search"
            )
        dimensions.append(_dimension(name, value))
    trials = _whole("search.trials", table.get("trials", _TRIALS), 1)
    return SearchSpace(dimensions=tuple(dimensions), trials=trials)


def _dimension(name: str, value: Any) -> Dimension:
    if isinstance(value, list) and value:
        for each in value:
            _check_value(f"search.{name}", each)
        return Dimension(name=name, values=tuple(value))
    if not (isinstance(value, dict) and {"low", "high"} <= set(value)):
        raise InvalidInput(
            f"search.{name} is {value!r}, but it must be a list of values, or a table with low, "
            "high and, for even logarithms, log = true"
        )
    bounds = _table(f"search.{name}", value, ("low", "high", "log"))
    for each in ("low", "high"):
        if isinstance(bounds[each], bool) or not isinstance(bounds[each], int | float):
            raise InvalidInput(f"search.{name}.{each} is {bounds[each]!r}, but it must be a number")
    log = _true_or_false(f"search.{name}.log", bounds.get("log", False))
    return Dimension(name=name, low=bounds["low"], high=bounds["high"], log=log)


def _objective(table: Any) -> Objective:
    fields = _table("objective", table, ("line", "file", "key"))
    found = Objective(**{key: _text(f"objective.{key}", value) for key, value in fields.items()})
    for name in placeholders(found.file):
        if name != "folder":
            raise InvalidInput(
                f"objective.file has {{{name}}}, but its only placeholder is {{folder}}"
            )
    if found.file and "folder" not in placeholders(found.file):
        raise InvalidInput(
            f"objective.file is {found.file!r} without {{folder}}, so that all runs would have the "
            "same file: let the command write it into {folder}, the run's own folder"
        )
    return found


def _rates(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    if "rates" in content:
        for other in ("initial_lr", "lr_min", "lr_max"):
            if other in content:
                raise InvalidInput(
                    f"{other} belongs to the search, but rates are given: leave out one of the two"
                )
        rates = content["rates"]
        if not (isinstance(rates, list) and rates):
            raise InvalidInput(f"rates is {rates!r}, but it must be a list of learning rates")
        found = tuple(_rate("rates", each) for each in rates)
        if list(found) != sorted(set(found)):
            raise InvalidInput(f"rates is {rates!r}, but it must ascend, without repetition")
        return {"rates": found, "initial_lr": found[len(found) // 2]}
    if "initial_lr" not in content:
        raise InvalidInput(
            f"initial_lr: sweep {name!r} does not say it, but it must, unless it lists its rates"
        )
    names = [key for key in ("initial_lr", "lr_min", "lr_max") if key in content]
    bounds = {key: _rate(key, content[key]) for key in names}
    if not bounds.get("lr_min", 0.0) <= bounds["initial_lr"] <= bounds.get("lr_max", math.inf):
        raise InvalidInput(
            f"initial_lr is {bounds['initial_lr']:g}, but it must lie from lr_min to lr_max"
        )
    return dict(bounds)


def _cells(
    table: Any, command: Command, variants: list[str]
) -> list[tuple[CommandScale, str, int | None]]:
    keys = [key for key, _ in command.base]
    fields = _table("cell", table, (*keys, "variants", "seeds"))
    given = dict(_values("cell", {key: fields[key] for key in keys if key in fields}))
    values = tuple((key, given.get(key, value)) for key, value in command.base)
    seeds = _whole("cell.seeds", fields["seeds"], 1) if "seeds" in fields else None
    chosen = _variants("cell.variants", fields.get("variants", variants))
    return [(CommandScale(values, command.base), variant, seeds) for variant in chosen]


def _values(name: str, table: Any) -> tuple[tuple[str, Value], ...]:
    if not (isinstance(table, dict) and (table or name == "cell")):
        raise InvalidInput(f"{name} must be a table of the model's sizes, such as width = 64")
    for key, value in table.items():
        _check_value(f"{name}.{key}", value)
        _check_key(name, key)
    return tuple(table.items())


def _check_value(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise InvalidInput(
            f"{name} is {value!r}, but it must be a number or a text: the placeholder's value"
        )


def _check_key(name: str, key: str) -> None:
    taken = (*GIVEN, "variants", "seeds", "trials")
    if key in taken or not re.fullmatch(r"\w+", key):
        raise InvalidInput(
            f"{name}.{key} cannot be a key: it must be a word, and none of {', '.join(taken)}"
        )


def _variants(name: str, value: Any) -> list[str]:
    if not (isinstance(value, list) and all(each in VARIANTS for each in value)):
        raise InvalidInput(f"{name} is {value!r}, but it must be a list of {', '.join(VARIANTS)}")
    return list(dict.fromkeys(value))


def _refuse_unknown(prefix: str, table: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    for key in table:
        if key not in allowed:
            raise InvalidInput(
                f"{prefix}{key} is not a field of a sweep with a command; allowed are "
                f"{', '.join(allowed)}"
            )


def _table(name: str, table: Any, allowed: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise InvalidInput(f"{name} is {table!r}, but it must be a table")
    _refuse_unknown(f"{name}.", table, allowed)
    return table


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidInput(f"{name} is {value!r}, but it must be a text")
    return value


def _whole(name: str, value: Any, least: int) -> int:
    if type(value) is not int or value < least:  # true is an int, too
        raise InvalidInput(
            f"{name} is {value!r}, but it must be a whole number of at least {least}"
        )
    return value


def _rate(name: str, value: Any) -> float:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not 0 < number < math.inf:
        raise InvalidInput(
            f"{name} is {value!r}, but it must be a learning rate, above 0 and finite"
        )
    return float(number)


def _early_stop(value: Any) -> bool:
    if _true_or_false("run.early_stop", value):
        require_optuna("run.early_stop")
    return bool(value)


def _true_or_false(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidInput(f"{name} is {value!r}, but it must be true or false")
    return value


def _seconds(value: Any) -> float:
    found = re.fullmatch(r"(\d+)([smhd])", value) if isinstance(value, str) else None
    if found is None or int(found[1]) == 0:
        raise InvalidInput(
            f"run.time_limit is {value!r}, but it must be a text such as '90s', '30m', '12h' or "
            "'2d'"
        )
    return float(int(found[1]) * _SECONDS[found[2]])
