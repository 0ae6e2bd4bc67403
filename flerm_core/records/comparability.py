"""Which recordings may be compared, and whether two specifications are of one recording."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flerm_core.errors import AlreadyExists
from flerm_core.records.recording import EstimatorSettings, RecordingSpec, same_lr

RATE_RATIOS = "rate_ratios"
"""The setting of an optimiser that holds the rates of its parameter groups, relative to the run's
(`flerm_core.matching.rate_ratios`). Recordings compare whatever they are: a sweep of one group's
rate changes them from run to run."""


@dataclass(frozen=True, slots=True)
class ComparabilityKey:
    """What recordings must share to stand in one set of targets, in comparable form.

    optimizer: the class name.
    settings: the optimiser's settings as `settings_line` writes them.
    estimator: `EstimatorSettings.comparability`.
    """

    optimizer: str
    settings: str
    estimator: str

    @classmethod
    def of(
        cls, optimizer: str, config: Mapping[str, Any], estimator: EstimatorSettings
    ) -> ComparabilityKey:
        """The key of these settings.

        Numbers compare by value (0 equals 0.0), sequences by content.
        """
        return cls(optimizer, settings_line(config), estimator.comparability)

    @property
    def optimizer_key(self) -> str:
        """Optimiser and settings in one line: `AdamW(betas=[0.9, 0.999], eps=1e-08)`."""
        return self.optimizer + self.settings


def comparability_of(spec: RecordingSpec) -> ComparabilityKey:
    """The key of a recording."""
    return ComparabilityKey.of(spec.optimizer, spec.optimizer_config, spec.estimator)


def optimizer_key(optimizer: str, config: Mapping[str, Any]) -> str:
    """`ComparabilityKey.optimizer_key` where no estimator is at hand."""
    return optimizer + settings_line(config)


def refuse_other_recording(
    stored: RecordingSpec, sent: RecordingSpec, *, stored_digest: str = ""
) -> None:
    """Raises `AlreadyExists` unless `sent`, which has the id of `stored`, means the same recording.

    World size, versions, tags and the like may differ between the attempts of one recording; what
    is compared here may not.

    stored_digest: that of the stored parameters, for a caller that holds `stored` without them.
    """
    there, here = comparability_of(stored), comparability_of(sent)
    digest = stored_digest or stored.parameters.digest
    pairs: tuple[tuple[str, object, object], ...] = (
        ("family", stored.family, sent.family),
        ("lr", stored.lr, stored.lr if same_lr(stored.lr, sent.lr) else sent.lr),
        ("seed", stored.seed, sent.seed),
        ("role", stored.role, sent.role),
        ("variant", stored.variant, sent.variant),
        ("optimizer", there.optimizer_key, here.optimizer_key),
        ("estimator", there.estimator, here.estimator),
        ("targets_digest", stored.targets_digest, sent.targets_digest),
        ("parameters", f"digest {digest[:12]}", f"digest {sent.parameters.digest[:12]}"),
    )
    for name, known, given in pairs:
        if known != given:
            raise AlreadyExists(
                f"recording {sent.id} exists with {name} {known!r}, not {given!r}: "
                "a new recording needs an id of its own"
            )


def settings_in_force(config: Mapping[str, Any]) -> dict[str, Any]:
    """An optimiser's settings, sorted, without those that are off (None, False, 0 or empty).

    Another version of the optimiser may not know such a setting, and does the same without it.
    `RATE_RATIOS` is left out.
    """
    plain = {key: _plain(value) for key, value in sorted(config.items())}
    return {key: value for key, value in plain.items() if value and key != RATE_RATIOS}


def settings_line(config: Mapping[str, Any]) -> str:
    """An optimiser's settings in force as one line: `(betas=[0.9, 0.999], eps=1e-08)`."""
    settings = settings_in_force(config).items()
    return f"({', '.join(f'{key}={json.dumps(value, sort_keys=True)}' for key, value in settings)})"


def _plain(value: Any) -> Any:
    """`value` with lists for sequences, and integers for floats that are whole."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
