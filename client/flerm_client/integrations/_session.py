"""What all integrations share: they begin a run with what the framework knows, and log metrics."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from torch import distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from flerm_client.flerm import FLeRM
from flerm_client.integrations._checkpoint import restore
from flerm_client.integrations._outputs import output_of
from flerm_client.integrations.probe_batches import probe_of
from flerm_client.training.probe import PreparedBatches
from flerm_client.training.run_options import instructed
from flerm_core.errors import InvalidInput
from flerm_core.records.batch_size import BATCH_SIZE

MODES = ("record", "match")

Mode = Literal["record", "match"] | None


class CallbackState:
    """The state of a framework's callback: what the user asked for, and the present run.

    mode: "record" or "match"; None: as the environment says (`FLeRM.auto`).
    keywords: the keywords of `FLeRM.record` or `match` that the user gave.

    `flerm` is the FLeRM of the run. It is None before the first run, and where the environment asks
    for nothing.

    Raises `InvalidInput` for an unknown mode or keyword, and for a missing family. This is raised
    when the callback is made, before training begins.
    """

    def __init__(self, mode: str | None, keywords: Mapping[str, Any]) -> None:
        self.flerm: FLeRM | None = None
        self._idle = False
        if mode is None:
            self._idle = instructed(keywords) is None
        else:
            _check_keywords(mode, keywords)
        self._mode = mode
        self._keywords = dict(keywords)
        self._measurements_logged = 0

    def _attach(
        self,
        model: nn.Module,
        optimizer: Any,
        *,
        loader: Iterable[Any],
        probe_batch_size: int | None = None,
        prepare: Callable[[Any], Any] | None = None,
        examples: int | None = None,
        total_steps: int | None = None,
        checkpoint: bytes | None = None,
        **keywords: Any,
    ) -> FLeRM:
        """Calls `FLeRM.record` or `match`. What the user did not give comes from the framework.

        model, optimizer: the wrapped model and its optimiser.
        loader: the training data; the probe is made of it where the user gave none.
        probe_batch_size: the batch size of that probe; None: the loader's.
        prepare: what the framework does to a batch before its model sees the batch. Batches of any
            probe are prepared so.
        examples: of one optimiser step (`step_examples`); None: not known. The recording says them,
            so that runs of another batch can follow it. Nothing of the training depends on them.
        total_steps: the length of the run, for `clock="fraction"` and `batch_size=`.
        checkpoint: what `collect_state` returned, where an earlier run goes on.
        keywords: keywords that take precedence over the user's.
        """
        self._end("interrupted")
        given = {"output": output_of} | self._keywords | keywords
        if "probe" not in given:
            given["probe"] = probe_of(loader, probe_batch_size)
        if prepare is not None and isinstance(given["probe"], Iterable):
            given["probe"] = PreparedBatches(given["probe"], prepare)
        if self._mode != "record" and (given.get("clock") == "fraction" or BATCH_SIZE in given):
            given.setdefault("total_steps", total_steps)
        if examples is not None and not any(BATCH_SIZE in said for said in _said(given)):
            given["config"] = {BATCH_SIZE: examples, **(given.get("config") or {})}
        if "process_group" not in given and _is_replicated(model):
            given["process_group"] = dist.group.WORLD
        flerm: FLeRM = getattr(FLeRM, self._mode or "auto")(model, optimizer, **given)
        self.flerm = flerm
        if checkpoint is not None:
            restore(flerm, checkpoint)
        self._mark_logged()
        return flerm

    def _mark_logged(self) -> None:
        """Notes that all present measurements are logged, or came with a checkpoint."""
        self._measurements_logged = 0 if self.flerm is None else self.flerm.measurements

    def _new_metrics(self) -> dict[str, float]:
        """The last measurement's metrics, once; empty where nothing was measured since.

        `flerm/fslr/<tensor>` in output units per unit learning rate, and `flerm/lr/<tensor>`.
        """
        flerm = self.flerm
        if flerm is None or flerm.measurements == self._measurements_logged:
            return {}
        self._mark_logged()
        values = {f"flerm/fslr/{name}": value for name, value in flerm.fslr.items()}
        rates = flerm.learning_rates()
        return values | {f"flerm/lr/{name}": value for name, value in rates.items()}

    def _end(self, status: str) -> None:
        """Ends the recording of the present run, if there is one."""
        if self.flerm is not None:
            self.flerm.close(status=status)


def _said(given: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The mappings in which the user may have said the batch size."""
    return [given, given.get("config") or {}, given.get("tags") or {}]


def _check_keywords(mode: str, keywords: Mapping[str, Any]) -> None:
    if mode not in MODES:
        raise InvalidInput(f"mode={mode!r} is not known; there are: {', '.join(MODES)}")
    allowed = set(inspect.signature(getattr(FLeRM, mode)).parameters) - {"model", "optimizer"}
    unknown = sorted(set(keywords) - allowed)
    if unknown:
        raise InvalidInput(
            f"FLeRM.{mode} takes no {', '.join(unknown)}; it takes {', '.join(sorted(allowed))}"
        )
    if not keywords.get("family"):
        raise InvalidInput("family= must be given: the models whose parameter names correspond")


def _is_replicated(model: nn.Module) -> bool:
    """Whether the framework replicates `model` over all ranks and holds the DDP wrapper itself."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return False
    return not any(isinstance(p, DTensor) for p in model.parameters())
