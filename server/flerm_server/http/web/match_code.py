"""The code that the matcher's page gives: for a training loop, for the Trainer, and by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flerm_core.matching.batch_change import BatchChange


@dataclass(frozen=True, slots=True)
class MatchArguments:
    """What the code says to FLeRM.

    step: the step that is matched; None: the first.
    batch_size, total_steps: of the run, where it follows another batch than the base's.
    """

    family: str
    lr: float
    registry: str
    step: int | None
    batch_size: int | None
    total_steps: int | None

    def loop_code(self) -> str:
        """For a training loop of one's own."""
        return (
            "from flerm_client import FLeRM\n"
            "\n"
            "FLeRM.match(\n"
            "    model, optimizer,\n"
            "    probe=batches,  # an iterable of fresh input batches\n"
            f"{self._lines()}"
            ")\n"
        )

    def trainer_code(self) -> str:
        """For Hugging Face's Trainer."""
        return (
            "from flerm_client.integrations.transformers import FLeRMCallback\n"
            "\n"
            "# trainer = Trainer(model, "
            f"TrainingArguments(..., learning_rate={self.lr:.6g}), ...)\n"
            "FLeRMCallback(\n"
            '    mode="match",\n'
            f"{self._lines()}"
            ").add_to(trainer)\n"
            "trainer.train()\n"
        )

    def _lines(self) -> str:
        given: dict[str, Any] = {"family": json.dumps(self.family), "lr": f"{self.lr:.6g}"}
        given["start"] = None if self.step == 1 else self.step
        given |= {"batch_size": self.batch_size, "total_steps": self.total_steps}
        given["registry"] = json.dumps(self.registry)
        return "".join(
            f"    {name}={value},\n" for name, value in given.items() if value is not None
        )


def rates_code(
    optimizer: str, lr: float, rates: Mapping[str, float], change: BatchChange | None
) -> str:
    """An optimiser with a group for each tensor.

    optimizer: a class of `torch.optim`.
    change: what another batch changes; None: nothing.
    """
    lines = "\n".join(f"    {json.dumps(name)}: {rate:.6g}," for name, rate in rates.items())
    other, betas = lr, ""
    if change is not None:
        other, found = lr * change.rate, [change.betas(each) for each in change.base_betas]
        said = ", ".join(f"({', '.join(f'{beta:.6g}' for beta in each)})" for each in found)
        # Which tensors have which betas, the page does not know.
        betas = f"    betas={said},\n" if len(found) == 1 else f"    # betas by group: {said}\n"
    return (
        f"rates = {{\n{lines}\n}}\n"
        f"optimizer = torch.optim.{optimizer}(\n"
        f'    [{{"params": [p], "lr": rates.get(name, {other:.6g})}} '
        "for name, p in model.named_parameters()],\n"
        f"{betas}"
        ")\n"
    )
