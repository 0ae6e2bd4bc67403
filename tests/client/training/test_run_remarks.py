"""What was not measured or matched is kept with the end of the recording, in short sentences."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from folder_runs import Model, probe, step
from torch import nn
from torch.optim import Adam

from flerm_client import FLeRM, RegistryClient
from flerm_client.training.run_remarks import RunRemarks
from flerm_core.records.recording import Recording

pytestmark = pytest.mark.filterwarnings("ignore")


def begun(folder: Path, mode: str = "record", **options: Any) -> tuple[nn.Module, Adam, FLeRM]:
    model = Model()
    optimizer = Adam(model.parameters(), 1e-3)
    given = {"probe": probe(), "family": "f", "registry": folder.as_uri(), "every": 1, **options}
    return model, optimizer, getattr(FLeRM, mode)(model, optimizer, **given)


def told(folder: Path, recording_id: str) -> Recording:
    with RegistryClient(folder.as_uri()) as registry:
        return registry.recording(recording_id)


def test_a_run_that_measured_as_asked_has_nothing_to_say(tmp_path: Path) -> None:
    model, optimizer, flerm = begun(tmp_path)
    step(model, optimizer)
    flerm.close()
    assert told(tmp_path, flerm.recording_id).remarks == ()


def test_a_run_without_a_step_is_recorded_with_the_reason(tmp_path: Path) -> None:
    _, _, flerm = begun(tmp_path)
    flerm.close()
    found = told(tmp_path, flerm.recording_id)
    assert (found.rows, found.status) == (0, "completed")
    assert [each[:50] for each in found.remarks] == [
        "this run has measured nothing: no step was made th"
    ]


def test_a_run_whose_measurements_failed_is_recorded_with_the_reason(tmp_path: Path) -> None:
    def broken(model: nn.Module, batch: Any) -> Any:
        raise RuntimeError("no kernel for this\nand a long story")

    model, optimizer, flerm = begun(tmp_path, output=broken)
    for _ in range(4):
        step(model, optimizer)
    flerm.close()
    found = told(tmp_path, flerm.recording_id)
    assert (found.rows, found.final_step) == (0, 4)
    assert found.remarks[0] == "this run has measured nothing: every measurement failed"
    assert any("RuntimeError: no kernel for this" in each for each in found.remarks)
    assert any("measuring has stopped at step 3" in each for each in found.remarks)


def test_tensors_that_never_had_an_fslr_are_named(tmp_path: Path) -> None:
    model, optimizer, flerm = begun(tmp_path, output=lambda model, batch: model.up(batch))
    for _ in range(2):
        step(model, optimizer)
    flerm.close()
    remarks = told(tmp_path, flerm.recording_id).remarks
    assert len(remarks) == 1 and remarks[0].endswith("down.weight, down.bias")


def test_an_optimizer_that_never_stepped_is_named(tmp_path: Path) -> None:
    model = Model()
    optimizers = [Adam(each.parameters(), 1e-3) for each in (model.up, model.down)]
    flerm = FLeRM.record(
        model, optimizers, probe=probe(), family="f", registry=tmp_path.as_uri(), every=1
    )
    step(model, optimizers[0])
    flerm.close()
    (remark,) = told(tmp_path, flerm.recording_id).remarks
    assert "one of the optimizers never made its part" in remark
    assert "number 2 (Adam) has made no step" in remark and "down.weight" in remark


def test_a_run_that_matched_nothing_says_so(tmp_path: Path) -> None:
    targets = {name: float("nan") for name, _ in Model().named_parameters()}
    model, optimizer, flerm = begun(tmp_path, "match", targets=targets)
    step(model, optimizer)
    with pytest.warns(UserWarning, match="this run has matched no tensor"):
        flerm.close()
    assert told(tmp_path, flerm.recording_id).remarks[0].startswith("this run has matched no")


def test_a_resumed_run_that_ends_before_its_next_measurement_is_completed(tmp_path: Path) -> None:
    model, optimizer, flerm = begun(tmp_path, every=100)
    step(model, optimizer)
    state = flerm.state_dict()
    flerm.close("interrupted")
    model, optimizer, flerm = begun(tmp_path, every=100)
    flerm.load_state_dict(state)
    step(model, optimizer)
    flerm.log(loss=0.5)
    flerm.close()
    found = told(tmp_path, flerm.recording_id)
    assert (found.status, found.rows, found.final_step, found.remarks) == ("completed", 1, 2, ())


def test_sentences_are_bounded_in_length_and_number() -> None:
    remarks = RunRemarks()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(30):
            remarks.say(f"{number}\n{'x' * 2000}")
            remarks.say(f"{number}\n{'x' * 2000}")
    found = remarks.at_end({"a": True}, warns=False)
    assert len(found) == 20 and all(len(each) == 1000 and each.isprintable() for each in found)


def test_a_matched_run_that_is_resumed_has_matched(tmp_path: Path) -> None:
    targets = {name: 2.0 for name, _ in Model().named_parameters()}
    options = {"targets": targets, "every": None}
    model, optimizer, flerm = begun(tmp_path, "match", **options)
    step(model, optimizer)
    state = flerm.state_dict()
    flerm.close("interrupted")
    model, optimizer, flerm = begun(tmp_path, "match", **options)
    flerm.load_state_dict(state)
    step(model, optimizer)
    flerm.close()
    assert set(flerm.multipliers.values()) != {1.0}
    assert told(tmp_path, flerm.recording_id).remarks == ()


@pytest.mark.slow
def test_a_script_that_closes_nothing_still_says_it(tmp_path: Path) -> None:
    script = f"""
import torch
from flerm_client import FLeRM
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.Adam(model.parameters(), 1e-3)
FLeRM.record(model, optimizer, probe=[torch.ones(4, 2)], family="f", registry={tmp_path.as_uri()!r})
torch.optim.Adam(model.parameters(), 1e-3).step()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "this run has measured nothing: no step was made" in done.stderr
    with RegistryClient(tmp_path.as_uri()) as registry:
        (found,) = registry.recordings("f")
    assert found.status == "completed" and "no step was made" in found.remarks[0]


def test_tensors_that_the_optimizer_gets_later_are_told_once(tmp_path: Path) -> None:
    model, optimizer, flerm = begun(tmp_path)
    step(model, optimizer)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2)) for _ in range(2)]})
    for _ in range(3):
        step(model, optimizer)
    flerm.close()
    (remark,) = told(tmp_path, flerm.recording_id).remarks
    assert remark.startswith("the optimizer has got 2 further tensors since FLeRM was attached")


def test_tensors_that_take_the_place_of_others_are_told(tmp_path: Path) -> None:
    model, optimizer, flerm = begun(tmp_path)
    step(model, optimizer)
    optimizer.param_groups[0]["params"][-1] = nn.Parameter(torch.ones(2))
    step(model, optimizer)
    flerm.close()
    (remark,) = told(tmp_path, flerm.recording_id).remarks
    assert remark.startswith("the optimizer has got 1 further tensors since FLeRM was attached")


def test_an_optimizer_that_another_has_replaced_is_told_where_no_loss_is_logged(
    tmp_path: Path,
) -> None:
    model, optimizer, flerm = begun(tmp_path)
    step(model, optimizer)
    other = Adam(model.parameters(), 1e-3)
    for _ in range(12):
        step(model, other)
    flerm.close()
    assert flerm.steps == 1
    (remark,) = told(tmp_path, flerm.recording_id).remarks
    assert remark.startswith("the weights have changed 8 times since step 1 without a step")


def test_weights_that_a_forward_writes_are_no_replaced_optimizer(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(8, 4, max_norm=0.5), nn.Linear(4, 2))
    optimizer = Adam(model.parameters(), 1e-3)
    ids = torch.arange(8).reshape(2, 4)
    flerm = FLeRM.record(
        model, optimizer, probe=[ids], family="f", registry=tmp_path.as_uri(), every=1
    )
    for _ in range(3):
        for _ in range(20):  # gradients are accumulated
            model(ids).square().mean().backward()
        optimizer.step()
    flerm.close()
    assert told(tmp_path, flerm.recording_id).remarks == ()


@pytest.mark.parametrize("after", [40, 250])
def test_an_optimizer_that_another_has_replaced_is_told(tmp_path: Path, after: int) -> None:
    model, optimizer, flerm = begun(tmp_path)
    flerm.log(loss=1.0)
    step(model, optimizer)
    for _ in range(after):
        flerm.log(loss=1.0)
    flerm.close()
    remarks = told(tmp_path, flerm.recording_id).remarks
    assert [each for each in remarks if f"{after} losses were logged since step 1" in each]


def test_losses_of_accumulated_gradients_are_no_replaced_optimizer(tmp_path: Path) -> None:
    model, optimizer, flerm = begun(tmp_path)
    for _ in range(4):
        for _ in range(32):
            flerm.log(loss=1.0)
        step(model, optimizer)
    for _ in range(31):
        flerm.log(loss=1.0)
    flerm.close()
    assert told(tmp_path, flerm.recording_id).remarks == ()


def test_tensors_that_the_model_no_longer_holds_are_named(tmp_path: Path) -> None:
    model, optimizer, flerm = begun(tmp_path)
    step(model, optimizer)
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    step(model, optimizer)
    flerm.close()
    (remark,) = told(tmp_path, flerm.recording_id).remarks
    names = ", ".join(name for name, _ in model.named_parameters())
    count = len(list(model.parameters()))
    assert remark.startswith(f"steps change nothing, and the model no longer holds {count} of the")
    assert remark.endswith(names)
