"""The table of recordings on a family's page: which rows and columns it has, in which order."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Query

from flerm_core.errors import InvalidInput
from flerm_core.records.recording import Recording, same_lr
from flerm_core.tuning.experiment_settings import (
    OPTIMIZER,
    ExperimentRun,
    Settings,
    differing_settings,
    short_texts,
    text_of,
)
from flerm_server.store.family_runs import FamilyRun, FamilyRuns
from flerm_server.store.interface import Store
from flerm_server.store.queries import FamilyOverview

_Row = tuple[FamilyRun, Settings]
_DIGEST = re.compile("(?=[0-9]*[a-f])[0-9a-f]{12,64}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
PAGE_ROWS = 50
MOST_COLUMNS = 24  # settings that are offered as columns
_LENGTHS = "ran", "rows"  # the orders by `FamilyRuns.read_lengths`


@dataclass(frozen=True, slots=True)
class Filters:
    """The fields of the page's address, as text; an empty field does not filter.

    sort: lr, seed, variant, status, loss, ran (steps), rows, started or a setting, with a minus for
    falling order; empty: newest first. column:
    the settings that are shown; none: those that tell the rows apart. page: from 1.
    """

    role: str = ""
    variant: str = ""
    status: str = ""
    lr_min: str = ""
    lr_max: str = ""
    sort: str = ""
    column: tuple[str, ...] = ()
    page: int = 1

    @property
    def active(self) -> bool:
        """Whether any field filters."""
        return any((self.role, self.variant, self.status, self.lr_min, self.lr_max))

    def left(self, found: FamilyRuns, settings: Sequence[Settings]) -> list[_Row]:
        """The runs that are shown. Raises `InvalidInput` for a rate that is no number."""
        low, high = _rate("lr_min", self.lr_min), _rate("lr_max", self.lr_max)
        rows = list(zip(found.runs, settings, strict=True))
        if not self.active:
            return rows
        return [
            (run, its)
            for run, its in rows
            if self.role in ("", run.role)
            and self.variant in ("", run.variant)
            and self.status in ("", found.status_of(run))
            and (low is None or run.run.lr >= low or same_lr(run.run.lr, low))
            and (high is None or run.run.lr <= high or same_lr(run.run.lr, high))
        ]


async def filters_of(
    role: str = "",
    variant: str = "",
    status: str = "",
    lr_min: str = "",
    lr_max: str = "",
    sort: str = "",
    column: Annotated[list[str], Query()] = [],  # noqa: B006 - FastAPI copies it
    page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
) -> Filters:
    """The filter of an address."""
    return Filters(role, variant, status, lr_min, lr_max, sort, tuple(column), page)


@dataclass(frozen=True, slots=True)
class RecordingTable:
    """One page of the table.

    columns: the settings shown. numeric: those of them that are numbers in all rows. offered: those
    that could be shown. rows: recordings with the texts of `columns`. total: of all pages. pages:
    how many there are.
    """

    columns: tuple[str, ...]
    numeric: frozenset[str]
    offered: tuple[str, ...]
    rows: tuple[tuple[Recording, tuple[str, ...]], ...]
    total: int
    page: int
    pages: int


def recording_table(store: Store, overview: FamilyOverview, filters: Filters) -> RecordingTable:
    """The rows that `filters` leave, newest first where no order is asked for."""
    found = overview.runs
    shown = filters.left(found, overview.settings)
    telling, varying = _told_apart([settings for _, settings in shown])
    offered = tuple(dict.fromkeys((*telling, *varying)))[:MOST_COLUMNS]
    columns = tuple(name for name in offered if name in filters.column) or telling
    ordered = _sorted(shown, found, filters.sort)
    pages = max(1, -(-len(ordered) // PAGE_ROWS))
    page = min(filters.page, pages)
    part = ordered[(page - 1) * PAGE_ROWS : page * PAGE_ROWS]
    short = short_texts({text_of(settings[OPTIMIZER]) for _, settings in shown})
    settings_by_id = {each.id: settings for each, settings in part}

    def cells(each: Recording) -> tuple[str, ...]:
        texts = (_text(settings_by_id[each.spec.id], name) for name in columns)
        return tuple(short.get(text, text) for text in texts)

    recordings = store.recordings_by_id([each.id for each, _ in part])
    rows = tuple((each, cells(each)) for each in recordings)
    numeric = frozenset(
        name for name in columns if all(isinstance(its.get(name, 0.0), float) for _, its in part)
    )
    return RecordingTable(columns, numeric, offered, rows, len(ordered), page, pages)


def recording_labels(overview: FamilyOverview, places: Sequence[int]) -> dict[str, str]:
    """What to call some of a family's recordings, by their ids: what tells them apart.

    places: of the recordings in `overview.runs`.
    """
    settings = [overview.settings[at] for at in places]
    telling, _ = _told_apart(settings)
    short = short_texts({text_of(each[OPTIMIZER]) for each in settings})
    labels = {}
    for at, its in zip(places, settings, strict=True):
        run = overview.runs.runs[at]
        texts = {name: _text(its, name) for name in telling}
        words = [f"{name} {short.get(text, text)}" for name, text in texts.items()]
        labels[run.id] = ", ".join(
            [run.variant, *words, f"lr {run.run.lr:.3g}", f"seed {run.run.seed}", run.id[:8]]
        )
    return labels


def differences(recordings: Sequence[Recording]) -> list[tuple[str, tuple[str, ...]]]:
    """In what recordings differ, with the text of each; a dash for none."""
    settings: list[Settings] = [
        {
            "family": each.spec.family,
            "role": each.spec.role,
            "variant": each.spec.variant,
            "learning rate": each.spec.lr,
            "seed": float(each.spec.seed),
            **ExperimentRun.of(each).settings,
        }
        for each in recordings
    ]
    names = _readable(dict.fromkeys(name for each in settings for name in each), settings)
    rows = [(name, tuple(_text(each, name) for each in settings)) for name in names]
    return [(name, texts) for name, texts in rows if len(set(texts)) > 1]


def filter_choices(overview: FamilyOverview) -> dict[str, list[str]]:
    """What each field of the filter can be set to, in the order in which the page offers it."""
    return {
        "role": sorted({role for role, _ in overview.counts}),
        "variant": sorted({variant for _, variant in overview.counts}),
        "status": list(overview.statuses),
    }


def _told_apart(settings: Sequence[Settings]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """`differing_settings` without those that say nothing to a reader."""
    telling, varying = differing_settings(settings)
    return _readable(telling, settings), _readable(varying, settings)


def _readable(names: Iterable[str], settings: Sequence[Settings]) -> tuple[str, ...]:
    """`names` without the settings whose values are digests or ids."""
    distinct = list({id(each): each for each in settings}.values())
    return tuple(
        name
        for name in names
        if not all(_DIGEST.fullmatch(text_of(each[name])) for each in distinct if name in each)
    )


def _sorted(runs: list[_Row], found: FamilyRuns, sort: str) -> list[_Row]:
    name = sort.removeprefix("-")
    if name in _LENGTHS:
        lengths, place = found.read_lengths(), _LENGTHS.index(name)
        none = (0, 0)  # of a recording that was deleted meanwhile
        return sorted(
            runs,
            key=lambda row: lengths.get(row[0].id, none)[place],
            reverse=sort.startswith("-"),
        )
    if not name:
        return runs
    if name == "started":
        return runs if sort.startswith("-") else runs[::-1]
    key: Callable[[_Row], Any] = {
        "lr": lambda row: row[0].run.lr,
        "seed": lambda row: row[0].run.seed,
        "variant": lambda row: (row[0].role, row[0].variant),
        "status": lambda row: found.status_of(row[0]),
        "loss": lambda row: math.inf if row[0].run.loss is None else row[0].run.loss,
    }.get(name, lambda row: _place(row[1].get(name, "")))
    return sorted(runs, key=key, reverse=sort.startswith("-"))


def _place(value: str | float) -> tuple[bool, float, str]:
    """By which values are sorted: numbers by size, then words by letter."""
    number = isinstance(value, float)
    return not number, value if isinstance(value, float) else 0.0, text_of(value)


def _text(settings: Settings, name: str) -> str:
    return text_of(settings[name]) if name in settings else "–"


def _rate(field_: str, text: str) -> float | None:
    if not text.strip():
        return None
    try:
        return float(text)
    except ValueError:
        raise InvalidInput(
            f"{field_}: {text[:40]!r} is no number; a learning rate such as 4e-3 is allowed"
        ) from None
