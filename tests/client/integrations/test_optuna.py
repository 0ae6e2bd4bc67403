"""An Optuna study remembers by the registry alone, and ends once its curve is settled."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState

from flerm_client import RegistryClient
from flerm_client.integrations.optuna import RegistryCallback
from flerm_core.errors import InvalidInput, NotFound

optuna.logging.set_verbosity(optuna.logging.WARNING)

SCRIPT = """
import math, sys
from flerm_client.registry.client import RegistryClient
from flerm_client.training.run_instructions import RunInstructions
said = RunInstructions.from_environment()
with RegistryClient() as registry:
    run = registry.start_recording(
        said.family, said.lr, ["w"], [[2]], seed=said.seed or 0, tags=said.tags, config=said.config
    )
    registry.append(run, [1], [[1.0]])
    loss = (math.log2(said.lr) + 6.3) ** 2
    if said.lr > 0.5:
        registry.finish(run, "diverged")
    else:
        registry.finish(run, final_loss=loss)
"""


def trained(callback: RegistryCallback, trial: Any) -> float:
    subprocess.run([sys.executable, "-c", SCRIPT], env=callback.environment(trial), check=True)
    return callback.loss(trial)


def test_a_study_ends_once_the_rate_is_settled_and_goes_on_from_the_registry(
    tmp_path: Path,
) -> None:
    address = f"file://{tmp_path}/registry"
    callback = RegistryCallback("net", registry=address)
    grid = {"lr": [2.0**-octave for octave in (7, 6, 5, 4, 3)]}
    study = optuna.create_study(sampler=optuna.samplers.GridSampler(grid, seed=1))

    def objective(trial: Any) -> float:
        trial.suggest_float("lr", 2.0**-8, 1.0, log=True)
        return trained(callback, trial)

    study.optimize(objective, callbacks=[callback])
    assert len(study.trials) <= 5
    assert study.best_value == pytest.approx(0.09, abs=1e-9)
    with RegistryClient(address) as registry:
        assert len(list(registry.recordings("net"))) == len(study.trials)
    later = optuna.create_study()
    distributions = {"lr": FloatDistribution(2.0**-8, 1.0, log=True)}
    assert callback.add_recordings(later, distributions) == len(study.trials)
    assert later.best_params == study.best_params
    other = RegistryCallback("net", registry=address, study_name="other")
    assert other.add_recordings(optuna.create_study(), distributions) == 0


def test_a_study_of_several_parameters_goes_on_and_knows_them_again(tmp_path: Path) -> None:
    callback = RegistryCallback("net", registry=f"file://{tmp_path}/registry")
    study = optuna.create_study()
    for lr in (0.01, 0.9):
        study.enqueue_trial({"lr": lr, "warmup": 3})

    def objective(trial: Any) -> float:
        trial.suggest_float("lr", 1e-4, 1.0, log=True)
        trial.suggest_int("warmup", 0, 10)
        return trained(callback, trial)

    study.optimize(objective, n_trials=2, callbacks=[callback])
    assert [each.state for each in study.trials] == [TrialState.COMPLETE, TrialState.FAIL]
    again = optuna.create_study()
    whole = {
        "lr": FloatDistribution(1e-4, 1.0, log=True),
        "warmup": IntDistribution(0, 10),
    }
    assert callback.add_recordings(again, whole) == 2
    assert again.best_params == {"lr": 0.01, "warmup": 3}
    assert again.best_value == pytest.approx((math.log2(0.01) + 6.3) ** 2)
    with pytest.raises(InvalidInput, match=r"has no decay; its configuration has warmup"):
        callback.add_recordings(again, {"decay": FloatDistribution(0, 1)})


def test_a_script_that_records_nothing_is_told(tmp_path: Path) -> None:
    callback = RegistryCallback("net", registry=f"file://{tmp_path}/registry")
    (tmp_path / "registry").mkdir()
    trial = optuna.trial.create_trial(
        params={"lr": 0.1}, distributions={"lr": FloatDistribution(0.01, 1)}, value=0.0
    )
    with pytest.raises(NotFound, match=r"does the script call FLeRM\.auto"):
        callback.loss(trial)
