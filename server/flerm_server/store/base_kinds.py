"""The kinds of a family's base recordings: which of them may stand in one set of targets."""

from __future__ import annotations

from dataclasses import dataclass

from flerm_core.records import validation
from flerm_core.records.comparability import ComparabilityKey, comparability_of
from flerm_core.records.queries import RecordingFilter
from flerm_core.records.recording import Recording
from flerm_core.tuning.experiment_settings import OPTIMIZER, short_texts
from flerm_server.store.interface import Store


@dataclass(frozen=True, slots=True)
class BaseKind:
    """Completed base recordings that may stand in one set of targets.

    recording: the newest of them. count: how many there are among the newest `MAX_PAGE_SIZE`.
    """

    key: ComparabilityKey
    recording: Recording
    count: int

    @property
    def pick(self) -> dict[str, str]:
        """Which experiment these are of, for a `BestQuery`."""
        return {OPTIMIZER: self.key.optimizer_key}


def base_kinds(store: Store, family: str) -> dict[str, BaseKind]:
    """The kinds of a family's completed base recordings, those with most recordings first, by what
    tells them apart: their optimiser, and where these differ their estimator too.

    Raises `NotFound` for an unknown family.
    """

    def answer() -> dict[str, BaseKind]:
        wanted = RecordingFilter(family=family, role="base", variant="plain", status="completed")
        by_key: dict[ComparabilityKey, list[Recording]] = {}
        for each in store.recordings(wanted, page_size=validation.MAX_PAGE_SIZE).items:
            by_key.setdefault(comparability_of(each.spec), []).append(each)
        texts = short_texts(key.optimizer_key for key in by_key)
        several = len({key.estimator for key in by_key}) > 1
        return {
            texts[key.optimizer_key] + (f" by {key.estimator}" if several else ""): BaseKind(
                key, its[0], len(its)
            )
            for key, its in sorted(by_key.items(), key=lambda item: -len(item[1]))
        }

    return store.family_runs(family).answers.get("base kinds", answer)
