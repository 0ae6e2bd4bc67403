"""Training loops that do to model and optimiser what FLeRM cannot know beforehand.

Each has a step a loss. They keep no checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from flerm_client import FLeRM
from tests.scripts.loop import Run, Trained, weights

STEPS = 16
LATER = 4
"""The step before which a loop changes what it does."""


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4)
    )


def batch(seed: int) -> Tensor:
    """Examples [8, 6]."""
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))


def loss_of(model: Callable[[Tensor], Tensor], step: int) -> Tensor:
    return (model(batch(step)) - 1).square().mean()


def attached(run: Run, model: nn.Module, optimizer: Any, **keywords: Any) -> FLeRM | None:
    probe = [batch(1000 + seed) for seed in range(4)]
    if not run.record:
        return None
    return run.attach(model, optimizer, probe=probe, **run.keywords, **keywords)


def ended(losses: list[float], model: nn.Module, flerm: FLeRM | None) -> Trained:
    if flerm is not None:
        flerm.close()
    return Trained(losses, weights(model), flerm)


def trained(
    run: Run,
    model: nn.Sequential,
    optimizer: torch.optim.Optimizer,
    change: Callable[[torch.optim.Optimizer], torch.optim.Optimizer] = lambda optimizer: optimizer,
) -> Trained:
    """A plain loop. change: is called with the optimiser at `LATER`, and gives the next one."""
    flerm = attached(run, model, optimizer)
    losses = []
    for step in range(STEPS):
        if step == LATER:
            optimizer = change(optimizer)
        loss = loss_of(model, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return ended(losses, model, flerm)


def optimizer_replaced(run: Run) -> Trained:
    model = network()
    adamw = torch.optim.AdamW(model.parameters(), 1e-2)
    return trained(run, model, adamw, lambda _: torch.optim.SGD(model.parameters(), 1e-2))


def layer_replaced(run: Run) -> Trained:
    """The readout is made anew, and takes the old one's place in the optimiser."""
    model = network()

    def change(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        model[4] = nn.Linear(16, 4)
        optimizer.param_groups.clear()
        optimizer.add_param_group({"params": list(model.parameters())})
        return optimizer

    return trained(run, model, torch.optim.AdamW(model.parameters(), 1e-2), change)


def frozen_and_thawed(run: Run) -> Trained:
    """The first layer is frozen until `LATER`; then the second is."""
    model = network()
    model[0].requires_grad_(False)

    def change(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        model[0].requires_grad_(True)
        model[2].requires_grad_(False)
        return optimizer

    return trained(run, model, torch.optim.AdamW(model.parameters(), 1e-2), change)


def group_added(run: Run) -> Trained:
    """The first layer joins at `LATER`, at a rate of its own."""
    model = network()
    model[0].requires_grad_(False)

    def change(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        model[0].requires_grad_(True)
        optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 1e-3})
        return optimizer

    others = [p for p in model.parameters() if p.requires_grad]
    return trained(run, model, torch.optim.AdamW(others, 1e-2), change)


def steps_under_inference_mode(run: Run) -> Trained:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 1e-1)
    flerm = attached(run, model, optimizer)
    losses = []
    for step in range(STEPS):
        loss = loss_of(model, step)
        loss.backward()
        with torch.inference_mode():
            optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return ended(losses, model, flerm)


def adversaries(run: Run) -> Trained:
    """A GAN: the discriminator steps twice, then the generator once."""
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))
    critic = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
    both = nn.Sequential(generator, critic)
    of_critic = torch.optim.Adam(critic.parameters(), 1e-2, betas=(0.5, 0.9))
    of_generator = torch.optim.Adam(generator.parameters(), 1e-2, betas=(0.5, 0.9))
    flerm = attached(run, both, [of_critic, of_generator])
    losses = []
    score = nn.functional.binary_cross_entropy_with_logits
    for step in range(STEPS):
        for turn in range(2):
            of_critic.zero_grad()
            made = generator(batch(2 * step + turn)).detach()
            real = batch(500 + step)[:, :4]
            loss = score(critic(real), torch.ones(8, 1)) + score(critic(made), torch.zeros(8, 1))
            loss.backward()
            of_critic.step()
        of_generator.zero_grad()
        score(both(batch(step)), torch.ones(8, 1)).backward()
        of_generator.step()
        losses.append(loss.item())
    return ended(losses, both, flerm)


def sharpness_aware(run: Run) -> Trained:
    """SAM in two steps: up by hand, then down by SGD from where the weights were."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 1e-1, momentum=0.9)
    flerm = attached(run, model, optimizer)
    losses = []
    for step in range(STEPS):
        loss = loss_of(model, step)
        loss.backward()
        before = [p.detach().clone() for p in model.parameters()]
        with torch.no_grad():
            for p in model.parameters():
                p.add_(p.grad, alpha=0.05)
        optimizer.zero_grad()
        loss_of(model, step).backward()
        with torch.no_grad():
            for p, old in zip(model.parameters(), before, strict=True):
                p.copy_(old)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return ended(losses, model, flerm)


def functional_gradients(run: Run) -> Trained:
    """Gradients of torch.func, stepped by an optimiser."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    flerm = attached(run, model, optimizer)
    losses = []
    for step in range(STEPS):
        values = {name: p.detach() for name, p in model.named_parameters()}
        found, loss = grad_and_value(
            lambda values, step=step: loss_of(lambda x: functional_call(model, values, (x,)), step)
        )(values)
        for name, p in model.named_parameters():
            p.grad = found[name]
        optimizer.step()
        losses.append(loss.item())
    return ended(losses, model, flerm)


def functional_steps(run: Run) -> Trained:
    """torch.func without an optimiser's step."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    flerm = attached(run, model, optimizer)
    values = {name: p.detach() for name, p in model.named_parameters()}
    losses = []
    for step in range(STEPS):
        found, loss = grad_and_value(
            lambda values, step=step: loss_of(lambda x: functional_call(model, values, (x,)), step)
        )(values)
        values = {name: value - 0.01 * found[name] for name, value in values.items()}
        losses.append(loss.item())
    return ended(losses, model, flerm)


def averaged_copy(run: Run) -> Trained:
    """An average of the weights takes their place for an evaluation after each step."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    average = [p.detach().clone() for p in model.parameters()]
    flerm = attached(run, model, optimizer)
    losses = []
    for step in range(STEPS):
        loss = loss_of(model, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        own = [p.data for p in model.parameters()]
        for p, mean in zip(model.parameters(), average, strict=True):
            mean.lerp_(p.detach(), 0.1)
            p.data = mean
        loss_of(model, 99)
        for p, kept in zip(model.parameters(), own, strict=True):
            p.data = kept
        losses.append(loss.item())
    return ended(losses, model, flerm)


def weights_away(run: Run) -> Trained:
    """Weights are in the model only from a step's forward to its update, as offloading has it."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    flerm = attached(run, model, optimizer)
    losses = []
    for step in range(STEPS):
        loss = loss_of(model, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        away = [p.data.clone() for p in model.parameters()]
        for p in model.parameters():
            p.data = torch.empty(0)
        for p, kept in zip(model.parameters(), away, strict=True):
            p.data = kept
        losses.append(loss.item())
    return ended(losses, model, flerm)
