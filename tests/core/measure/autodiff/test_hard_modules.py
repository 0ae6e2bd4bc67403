"""Modules that have no closed form or no forward mode are measured by `example` all the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from exact_reference import squares_by_differences
from torch import Tensor, nn

from flerm_client import FLeRM
from tests.core.measure.autodiff.hard_modules import KINDS

RATE, DRAWS = 1e-3, 16


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> Tensor:
    x = torch.randn(8, 12, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    outputs: Tensor = model(x)
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(seed))
    loss = (outputs * weights + outputs.square()).mean()
    loss.backward()
    optimizer.step()
    return loss.detach()


def _measured(
    make: Callable[[], nn.Module], estimator: str = "example", autocast: bool = False
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        model(torch.randn(8, 12))  # lets hooks set their weights, so that the model can be copied
    states = [copy.deepcopy(model.state_dict())]
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    probe = [torch.randn(16, 12) for _ in range(DRAWS)]
    context = torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()
    with (
        context,
        FLeRM.record(
            model, optimizer, probe=probe, family="f", warmup=DRAWS, estimator=estimator
        ) as flerm,
    ):
        _step(model, optimizer, 1)
    assert flerm.estimator == estimator
    states.append(model.state_dict())
    old = make()
    with torch.no_grad():
        old(torch.randn(8, 12))
    # Buffers (power iterations) as they are after the training's forward, weights as before.
    old.load_state_dict(states[1])
    old.load_state_dict({name: states[0][name] for name, _ in old.named_parameters()}, strict=False)
    changes = {
        name: (states[1][name] - states[0][name]) / RATE for name, _ in old.named_parameters()
    }
    return flerm.fslr, squares_by_differences(old, changes, torch.cat(probe))


@pytest.mark.filterwarnings("error:`example` has one sample")
@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_is_measured_within_its_statistical_error(kind: str) -> None:
    measured, exact = _measured(KINDS[kind])
    assert measured.keys() == exact.keys()
    for name, (square, error) in exact.items():
        assert abs(measured[name] ** 2 - square) <= 4 * error + 0.01 * square, name


@pytest.mark.parametrize("kind", ["custom function", "containers", "tied bias"])
def test_exact_differences_the_model_where_an_operator_has_no_forward_mode(kind: str) -> None:
    measured, exact = _measured(KINDS[kind], "exact")
    for name, (square, _) in exact.items():
        assert measured[name] ** 2 == pytest.approx(square, rel=1e-3), name


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_untouched(kind: str) -> None:
    def run(record: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = KINDS[kind]()
        optimizer = torch.optim.AdamW(model.parameters(), RATE)
        probe = [torch.randn(8, 12, generator=torch.Generator().manual_seed(3))]
        if record:
            FLeRM.record(model, optimizer, probe=probe, family="f", every=2, warmup=2)
        losses = [_step(model, optimizer, seed) for seed in range(4)]
        return [*losses, *(value for value in model.state_dict().values())]

    for plain, recorded in zip(run(False), run(True), strict=True):
        assert torch.equal(plain, recorded)


class Placed(nn.Module):
    """The input of its norm moves with a tensor of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.place, self.norm = nn.Parameter(torch.randn(12)), nn.LayerNorm(12)
        self.readout = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.norm(x + self.place).tanh())


def test_a_moved_norm_under_autocast_is_measured() -> None:
    measured, exact = _measured(Placed, autocast=True)
    for name, (square, error) in exact.items():
        assert abs(measured[name] ** 2 - square) <= 4 * error + 0.05 * square, name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["MixtralForCausalLM", "Qwen2MoeForCausalLM"])
def test_grouped_matrix_products_of_experts_are_measured(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, kind.replace("ForCausalLM", "Config"))(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=4, num_experts=4,
        moe_intermediate_size=24, shared_expert_intermediate_size=24, num_experts_per_tok=2,
        bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config)
    old = copy.deepcopy(model)
    probe = [torch.randint(3, 32, (16, 8)) for _ in range(DRAWS)]
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    flerm = FLeRM.record(model, optimizer, probe=probe, family="f", warmup=DRAWS)
    model(probe[0], labels=probe[0]).loss.backward()
    optimizer.step()
    flerm.close()
    assert flerm.estimator == "example"
    changes = {
        name: (p.detach() - old.get_parameter(name).detach()) / RATE
        for name, p in model.named_parameters()
    }
    old.set_experts_implementation("eager")  # grouped products take no float64
    exact = squares_by_differences(old, changes, torch.cat(probe), lambda found: found.logits)
    for name, (square, error) in exact.items():
        assert abs(flerm.fslr[name] ** 2 - square) <= 4 * error + 0.01 * square, name


class Packed(nn.Module):
    """Sequences of different lengths in one packed tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.readout = nn.GRU(4, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.arange(len(x)) % 3 + 1
        rows = nn.utils.rnn.pack_padded_sequence(
            x.reshape(-1, 3, 4), lengths, batch_first=True, enforce_sorted=False
        )
        return self.readout(nn.utils.rnn.pad_packed_sequence(self.rnn(rows)[0], True)[0])


@pytest.mark.filterwarnings("ignore:measuring by kronecker")
def test_packed_sequences_are_measured() -> None:
    model = Packed()
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    flerm = FLeRM.record(model, optimizer, probe=[torch.randn(8, 12)], family="f")
    _step(model, optimizer, 1)
    flerm.close()
    assert flerm.fslr.keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("kind", ["LSTM", "outputs of outputs"])
def test_a_later_draw_costs_one_forward_though_some_outputs_are_unused(kind: str) -> None:
    def forwards(draws: int) -> int:
        model, calls = KINDS[kind](), []
        model.register_forward_hook(lambda *_: calls.append(None))
        optimizer = torch.optim.AdamW(model.parameters(), RATE)
        FLeRM.record(model, optimizer, probe=[torch.randn(8, 12)], family="f", warmup=draws)
        _step(model, optimizer, 1)
        return len(calls)

    assert forwards(6) - forwards(2) == 4
