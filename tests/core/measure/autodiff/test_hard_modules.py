"""Modules that have no closed form or no forward mode are measured by `example` all the same."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from exact_reference import squares_by_differences
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.spectral_norm import spectral_norm
from torch.nn.utils.weight_norm import weight_norm

from flerm_client import FLeRM

RATE, DRAWS = 1e-3, 16


class _Scale(torch.autograd.Function):
    """As fused norms are written: without `jvp`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x * weight.tanh()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        inner = (gradient * x).reshape(-1, len(weight)).sum(0)
        return gradient * weight.tanh(), inner * (1 - weight.tanh() ** 2)


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12))

    def forward(self, x: Tensor) -> Tensor:
        return _Scale.apply(x, self.weight)  # type: ignore[no-any-return, no-untyped-call]


@dataclass
class Parts:
    """What a module may return."""

    first: Tensor
    rest: dict[str, Tensor]


class InParts(nn.Module):
    """Returns a dataclass with a dictionary in it, and counts its calls in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.fused, self.scale = Fused(), nn.Parameter(torch.randn(12))
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Parts:
        self.seen.append(len(x))
        return Parts(self.fused(x) * self.scale, {"twice": 2 * x * self.scale})


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.readout = InParts(), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.inner(x)
        return self.readout(parts.first + parts.rest["twice"])


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.readout = nn.LSTM(12, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.rnn(x.unsqueeze(1).expand(-1, 3, -1))[0])


class Bags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.readout = nn.EmbeddingBag(7, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.bag((x * 4).long() % 7))


class TiedBias(nn.Module):
    """A bias that a head and its decoder hold, as in BERT."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder, self.bias = nn.Linear(12, 4), nn.Parameter(torch.zeros(4))
            self.decoder.bias = self.bias

        def forward(self, x: Tensor) -> Tensor:
            return self.decoder(x) + self.bias.tanh()

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(12, 12), TiedBias.Head()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).tanh())


class Cache:
    """Keys of earlier calls, which a forward appends to, as transformers' DynamicCache."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.of = self  # a cycle


class Cached(nn.Module):
    """Attention to all that the cache holds; its layers share one cache."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.key, self.sink = nn.Linear(12, 12), nn.Parameter(torch.randn(12))

        def forward(self, x: Tensor, *, cache: Cache) -> Tensor:
            cache.of.keys.append(self.key(x))
            keys = torch.stack([*cache.keys, self.sink.expand_as(x)])
            return torch.softmax((keys * x).sum(-1, keepdim=True), 0).mul(keys).sum(0)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Cached.Layer() for _ in range(6))
        self.readout = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        cache = Cache()
        for layer in self.layers:
            x = x + layer(x, cache=cache)
        return self.readout(x)


class Recursive(nn.Module):
    """A module that calls itself, as a tree of parts does."""

    class Node(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.shift = nn.Parameter(torch.randn(12)), nn.Parameter(torch.randn(12))

        def forward(self, x: Tensor, depth: int) -> Tensor:
            below = self(x.roll(1, -1), depth - 1) if depth else x
            return torch.tanh(self.scale * below + self.shift)

    def __init__(self) -> None:
        super().__init__()
        self.node, self.readout = Recursive.Node(), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.node(x, 2))


class Spoiled(nn.Module):
    """Its inner module can be differentiated in no way; the module around it can."""

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(12))

        def forward(self, x: Tensor) -> Tensor:
            if not isinstance(self.weight, nn.Parameter):
                raise RuntimeError("a kernel for parameters only")
            return x * self.weight

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Spoiled.Inner()

        def forward(self, x: Tensor) -> Tensor:
            weight = self.inner.weight
            whole = isinstance(weight, nn.Parameter)
            return self.inner(x) if whole else x * weight

    def __init__(self) -> None:
        super().__init__()
        self.outer, self.readout = Spoiled.Outer(), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.outer(x))


def _normed(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return nn.Sequential(norm(nn.Linear(12, 12)), nn.Tanh(), norm(nn.Linear(12, 4)))


KINDS: Mapping[str, Callable[[], nn.Module]] = {
    "custom function": lambda: nn.Sequential(nn.Linear(12, 12), Fused(), nn.Linear(12, 4)),
    "containers": Joined,
    "LSTM": Recurrent,
    "EmbeddingBag": Bags,
    "tied bias": TiedBias,
    "next module up": Spoiled,
    "filled cache": Cached,
    "recursion": Recursive,
    "weight norm, hook": lambda: _normed(weight_norm),
    "weight norm, parametrization": lambda: _normed(parametrizations.weight_norm),
    "spectral norm, hook": lambda: _normed(spectral_norm),
    "spectral norm, parametrization": lambda: _normed(parametrizations.spectral_norm),
    "orthogonal": lambda: nn.Sequential(
        parametrizations.orthogonal(nn.Linear(12, 12)), nn.Tanh(), nn.Linear(12, 4)
    ),
    "pruned": lambda: _normed(lambda m: prune.random_unstructured(m, "weight", 0.3)),
}


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
