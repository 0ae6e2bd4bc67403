"""Sharpness: equal to the explicit Hessian's top eigenvalue, recorded, without a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from measured_runs import MODELS, Trace, fresh, leave, loss_of, same, trained
from torch import Tensor, nn
from torch.optim import Adam

from flerm_client import FLeRM, RegistryClient
from flerm_core.errors import MeasurementError
from flerm_core.measure.sharpness import top_eigenvalue


def training_loss(model: nn.Module, batch: Tensor) -> Tensor:
    return loss_of(model(batch))


def by_hand(model: nn.Module, loss: Any) -> float:
    """The whole Hessian, row by row, and all its eigenvalues."""
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    rows = [
        torch.cat(
            [
                g.reshape(-1)
                for g in torch.autograd.grad(
                    each, parameters, retain_graph=True, materialize_grads=True
                )
            ]
        )
        for each in flat
    ]
    return torch.linalg.eigvalsh(torch.stack(rows))[-1].item()


@pytest.mark.parametrize("name", ["resmlp", "convnet"])
def test_sharpness_is_the_largest_eigenvalue_of_the_explicit_hessian(name: str) -> None:
    model, batches = fresh(name)
    model.double()
    loss = loss_of(model(batches[0].double()))
    assert top_eigenvalue(loss, list(model.parameters())) == pytest.approx(
        by_hand(model, loss), rel=2e-3
    )


def test_sharpness_is_the_largest_eigenvalue_and_not_the_one_of_largest_size() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    loss = (torch.tensor([-5.0, 1.0, 2.0]) * weight.square()).sum() / 2
    assert top_eigenvalue(loss, [weight]) == pytest.approx(2.0, rel=2e-3)


def test_one_parameter_and_a_loss_without_curvature() -> None:
    weight = nn.Parameter(torch.tensor(3.0))
    assert top_eigenvalue(weight**3, [weight]) == pytest.approx(18.0)
    assert top_eigenvalue(2.0 * weight, [weight]) == 0.0
    assert torch.tensor(top_eigenvalue(weight * torch.inf, [weight])).isnan()
    with pytest.raises(
        MeasurementError, match=r"sharpness: the loss has shape \[2\]; it must be a scalar"
    ):
        top_eigenvalue(weight * torch.ones(2), [weight])


def run(name: str, registry: str | None, **options: Any) -> tuple[Trace, FLeRM | None]:
    model, batches = fresh(name)
    optimizer = Adam(model.parameters(), 1e-2)
    make = MODELS[name][1]
    probe = (make() for _ in iter(int, 1))
    flerm = None
    if options:
        flerm = FLeRM.record(
            model, optimizer, probe=probe, family="f", registry=registry, **options
        )
    trace = Trace(losses=trained(model, optimizer, batches))
    return leave(trace, model, optimizer), flerm


@pytest.mark.filterwarnings("ignore:`example` has one sample a draw")
@pytest.mark.parametrize("name", MODELS)
def test_sharpness_leaves_no_trace_and_changes_no_fslr(name: str) -> None:
    plain, _ = run(name, None)
    without, before = run(name, None, every=3, warmup=2)
    recorded, flerm = run(name, None, every=3, warmup=2, sharpness=training_loss)
    assert same(plain, without) and same(plain, recorded)
    assert before is not None and flerm is not None
    assert torch.tensor(before.sharpness).isnan() and flerm.sharpness > 0.0
    if (
        name != "decoder"
    ):  # dropout: the masks drawn for the loss come after those of the first draw
        assert flerm.fslr == before.fslr


def test_every_row_goes_to_the_registry_with_it_and_back_from_a_checkpoint(tmp_path: Path) -> None:
    _, flerm = run("resmlp", f"file://{tmp_path}", every=3, warmup=1, sharpness=training_loss)
    assert flerm is not None
    state = flerm.state_dict()
    flerm.close()
    with RegistryClient(f"file://{tmp_path}") as client:
        kept = client.auxiliary(flerm.recording_id)
    assert kept.steps.tolist() == [1, 4, 7]
    assert (kept.scalars["sharpness"] > 0.0).all() and kept.scalars["sharpness"][
        -1
    ] == flerm.sharpness
    assert flerm.auxiliary.scalars["sharpness"].tolist() == kept.scalars["sharpness"].tolist()
    model, _ = fresh("resmlp")
    again = FLeRM.record(
        model,
        Adam(model.parameters(), 1e-2),
        probe=[MODELS["resmlp"][1]()],
        family="f",
        sharpness=training_loss,
    )
    again.load_state_dict(state)
    assert again.sharpness == flerm.sharpness
