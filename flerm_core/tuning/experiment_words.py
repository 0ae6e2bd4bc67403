"""Sentences on which experiment of a family an answer is about, for command line and pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flerm_core.errors import NotFound, join_names
from flerm_core.tuning.experiment_settings import Kind


def experiment_words(kinds: Sequence[Kind], left_out: int, bigger: int) -> str:
    """Which experiment is shown, which others there are, and how to choose one.

    Empty where there is only one experiment and no bigger base.

    kinds: the settings in which the experiments differ.
    left_out: the number of recordings of other experiments.
    bigger: the number of recordings with role base whose model is bigger than the smallest base.
    """
    words = []
    shown = ", ".join(f"{kind.name} {kind.labels[kind.shown]}" for kind in kinds)
    others = [
        (f"{kind.name}={kind.labels[value]}", count)
        for kind in kinds
        for value, count in kind.values
        if value != kind.shown
    ]
    if others:
        there = join_names(f"{pick} ({_counted(count)})" for pick, count in others)
        words.append(
            f"This is about the runs with {shown}. The family has others, {_counted(left_out)} in "
            f"all: {there}; to ask about one of them, pick its setting, such as {others[0][0]}."
        )
    if bigger:
        are = "are" if bigger > 1 else "is"
        words.append(
            f"{_counted(bigger)} with role base {are} of a bigger model than the smallest base and "
            f'{"count" if bigger > 1 else "counts"} as scaled: record such runs with role="scaled".'
        )
    return " ".join(words)


def check_picked(kinds: Sequence[Kind], pick: Mapping[str, str]) -> None:
    """Raises `NotFound` where the experiment that `pick` names is not the one that `kinds` show."""
    known = {kind.name: kind for kind in kinds}
    for name, value in pick.items():
        if name not in known:
            there = f"there is {join_names(sorted(known))}" if known else "there is one experiment"
            raise NotFound(f"pick: {name!r} is no setting of these recordings; {there}")
        kind = known[name]
        if value not in (kind.shown, kind.labels[kind.shown]):
            there = join_names(kind.labels[each] for each, _ in kind.values)
            raise NotFound(
                f"pick: {name}={value!r} fits no base recording of this experiment; "
                f"there is {there}"
            )


def _counted(recordings: int) -> str:
    return f"{recordings} recording{'s' if recordings != 1 else ''}"
