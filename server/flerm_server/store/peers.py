"""The recordings whose losses are shown beside those of a scaled one."""

from __future__ import annotations

from flerm_core.records import validation
from flerm_core.records.queries import RecordingFilter
from flerm_core.records.recording import Recording
from flerm_server.store.interface import Store

PEERS = ("plain", "matched")


def peers(store: Store, recording: Recording) -> dict[str, Recording]:
    """The runs to show beside a scaled one: the same model trained by other variants at the same
    rate, and the base at that rate; by label.

    Of several the one with the same seed counts, else the newest. A base has none.
    """
    spec = recording.spec
    if spec.role == "base":
        return {}
    wanted = RecordingFilter(
        family=spec.family, lr_min=spec.lr, lr_max=spec.lr, optimizer=spec.optimizer
    )
    found: dict[str, Recording] = {}
    for each in store.recordings(wanted, page_size=validation.MAX_PAGE_SIZE).items:
        its = each.spec
        base = its.id in spec.targets_sources or (
            not spec.targets_sources and (its.role, its.variant) == ("base", "plain")
        )
        same = its.config == spec.config and its.variant in PEERS and its.variant != spec.variant
        label = "base" if base else its.variant if same and its.role == "scaled" else ""
        if label and (label not in found or its.seed == spec.seed != found[label].spec.seed):
            found[label] = each
    return found
