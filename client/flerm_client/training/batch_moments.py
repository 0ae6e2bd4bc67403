"""The moments of a run whose batch is not the base's: set when it begins, put back when it ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch.optim import Optimizer

from flerm_client.training.optimizer_info import BASE_BETAS
from flerm_client.training.run_options import MatchOptions
from flerm_core.errors import InvalidInput
from flerm_core.matching.batch_change import BatchChange
from flerm_core.matching.targets import Targets


def put_back_betas(optimizers: Iterable[Optimizer]) -> None:
    """Gives each group of parameters the betas that it had before `follow_batch`."""
    for group in (group for each in optimizers for group in each.param_groups):
        if BASE_BETAS in group:
            group["betas"] = tuple(group.pop(BASE_BETAS))


@contextmanager
def betas_kept_on_error(optimizers: Iterable[Optimizer]) -> Iterator[None]:
    """On an error every group of parameters gets the betas back that it had at the beginning.

    Who catches the error may train on with the same optimizer.
    """
    keys = ("betas", BASE_BETAS)
    before = [
        (group, {key: group[key] for key in keys if key in group})
        for each in optimizers
        for group in each.param_groups
    ]
    try:
        yield
    except BaseException:
        for group, its in before:
            for key in keys:
                group.pop(key, None)
            group.update(its)
        raise


def follow_batch(optimizers: Iterable[Optimizer], change: BatchChange) -> None:
    """Gives each group of parameters the betas of the changed batch, in place of the base's."""
    for group in (group for each in optimizers for group in each.param_groups):
        group[BASE_BETAS] = tuple(float(beta) for beta in group["betas"])
        group["betas"] = change.betas(group[BASE_BETAS])


def batch_change_of(options: MatchOptions, answer: Targets | None, start: int) -> BatchChange:
    """What `options.batch_size` changes against the base behind `answer`.

    answer: a registry's; None for targets of another origin.
    start: the first step that is matched.

    Raises `InvalidInput` where the base's batch size is not known, where no rule was measured for
    the optimiser, and where the run is matched at other steps than the first.
    """
    size = options.batch_size
    if answer is None:
        raise InvalidInput(
            f"batch_size={size}: targets= says no batch size of the base; give the answer of "
            "RegistryClient.targets, or leave batch_size out"
        )
    change = BatchChange.of(answer, size, options.total_steps)
    if options.every or start != 1:
        wrong = f"every={options.every}" if options.every else f"start={start}"
        raise InvalidInput(
            f"{wrong} is not allowed with batch_size=, which matches at the first step alone: at "
            "later steps FSLRs depend on the size of the batch; leave one of the two out"
        )
    return change
