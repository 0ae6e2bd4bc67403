"""An Optuna study whose memory is the registry.

study.optimize(objective, callbacks=[RegistryCallback(family="team/decoder")])
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from flerm_client.registry.client import RegistryClient
from flerm_client.training.run_instructions import RunInstructions
from flerm_core.errors import InvalidInput, NotFound
from flerm_core.records.recording import Recording

_TRIAL_TAG = "optuna"


class RegistryCallback:
    """Keeps an Optuna study in the registry: its earlier trials, its runs and its end.

    family: of the recordings. registry: its address; None: FLERM_REGISTRY. study_name: a tag of the
    recordings, by which studies on one family are told apart. lr: the name of the parameter that is
    the learning rate.

    Used as a callback of `study.optimize` it stops the study once the family's curve is settled:
    once nothing is left to try around the best rate. A study of several parameters goes on.

    Raises what the registry raises when it is asked.
    """

    def __init__(
        self,
        family: str,
        *,
        registry: str | os.PathLike[str] | None = None,
        study_name: str = "study",
        lr: str = "lr",
    ) -> None:
        self.family = family
        self.registry = registry
        self.lr = lr
        self.tags = {_TRIAL_TAG: study_name}

    def add_recordings(
        self, study: optuna.Study, distributions: Mapping[str, BaseDistribution]
    ) -> int:
        """Adds the runs that have ended as trials, and returns how many there are.

        distributions: of the parameters, by name. The learning rate is that of the recording, the
        others stand in its configuration. Diverged runs are failed trials. Raises `InvalidInput`
        for a recording without one of the parameters.
        """
        found = self._ended()
        for recording in found:
            study.add_trial(self._frozen(recording, dict(distributions)))
        return len(found)

    def environment(self, trial: Trial) -> dict[str, str]:
        """The variables for the process of `trial`, whose script calls `FLeRM.auto`.

        Call it after the parameters were suggested. The recording then has them.
        """
        params = dict(trial.params)
        rate = params.pop(self.lr)
        said = RunInstructions(
            mode="record", family=self.family, lr=rate, tags=self.tags, config=params
        ).variables()
        registry = {} if self.registry is None else {"FLERM_REGISTRY": str(self.registry)}
        return {**os.environ, **said, **registry}

    def loss(self, trial: Trial) -> float:
        """The final loss that the run of `trial` recorded; NaN where it diverged.

        Raises `NotFound` where there is no ended recording.
        """
        params = dict(trial.params)
        rate = params.pop(self.lr)
        for recording in self._ended():
            own = {name: recording.spec.config.get(name) for name in params}
            if math.isclose(recording.spec.lr, rate) and own == params:
                loss = recording.final_loss
                return math.nan if loss is None or recording.status == "diverged" else loss
        raise NotFound(
            f"family {self.family!r} has no ended recording of this trial at lr {rate:g}: does the "
            "script call FLeRM.auto?"
        )

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Stops the study once the learning rate's curve is settled."""
        if set(trial.params) != {self.lr}:
            return
        try:
            with RegistryClient(self.registry) as client:
                settled = not client.best(self.family, tags=self.tags).suggested_rates
        except NotFound:  # every run diverged so far
            return
        if settled:
            study.stop()

    def _ended(self) -> list[Recording]:
        with RegistryClient(self.registry) as client:
            found = client.recordings(self.family, tags=self.tags)
            return [each for each in found if each.status in ("completed", "diverged")]

    def _frozen(
        self, recording: Recording, distributions: dict[str, BaseDistribution]
    ) -> FrozenTrial:
        values: dict[str, Any] = {**recording.spec.config, self.lr: recording.spec.lr}
        for name in distributions:
            if name not in values:
                raise InvalidInput(
                    f"distributions: recording {recording.spec.id} has no {name}; its "
                    f"configuration has {', '.join(recording.spec.config) or 'nothing'}"
                )
        params = {name: values[name] for name in distributions}
        if recording.status == "diverged" or recording.final_loss is None:
            return create_trial(state=TrialState.FAIL, params=params, distributions=distributions)
        return create_trial(params=params, distributions=distributions, value=recording.final_loss)
