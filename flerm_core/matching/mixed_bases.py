"""Says where the base recordings behind one set of targets are of different experiments."""

from __future__ import annotations

from collections.abc import Iterable

from flerm_core.records.recording import Recording
from flerm_core.tuning.cautions import is_initial_scale
from flerm_core.tuning.experiment_settings import USUAL, plain_settings, text_of
from flerm_core.tuning.scale import Value, value_of

_MOST = 4  # values of a setting that a sentence lists


def mixture_words(recordings: Iterable[Recording]) -> str:
    """A sentence on the settings in which base recordings differ; empty where they do not.

    Compared are the settings that tell experiments apart (`USUAL`, and scales of initialisation),
    in configurations, nested or not, and in tags. A recording without a setting is not compared.
    """
    values: dict[str, dict[Value, None]] = {}
    for recording in recordings:
        spec = recording.spec
        settings = dict(plain_settings(spec.tags)) | dict(plain_settings(spec.config))
        for name, value in settings.items():
            if name in USUAL or is_initial_scale(name):
                values.setdefault(name, {})[value_of(value)] = None
    several = {name: list(its) for name, its in values.items() if len(its) > 1}
    if not several:
        return ""
    said = "; ".join(f"{name} is {_listed(its)}" for name, its in sorted(several.items()))
    return (
        f"the base recordings behind these targets are of different experiments ({said}) and are "
        "averaged all the same: give those of one a tag of their own (flerm tag), and choose them "
        "by it"
    )


def _listed(values: list[Value]) -> str:
    shown = sorted(map(text_of, values))
    rest = [f"{len(shown) - _MOST} more"] if len(shown) > _MOST else []
    return " or ".join([*shown[:_MOST], *rest])
