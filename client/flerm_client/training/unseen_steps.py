"""Steps that train the model and are not those of the optimisers that were given."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from flerm_client.training.run_remarks import RunRemarks

_LOOKED_AT = 32  # tensors, so that a look takes a microsecond
_TELL_AFTER = 8


class UnseenSteps:
    """Says when something else trains the model: its weights change, and no step is seen.

    parameters: the tensors that are measured.
    remarks: takes the sentence.

    A change counts when two successive forwards of the training find other weights. Some models
    write into their weights in each forward (`Embedding(max_norm=)`), and gradients may be
    accumulated over many forwards. So changes before the first step that is seen say nothing, and
    later ones are compared with the most that came before one step.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], remarks: RunRemarks) -> None:
        every = list(parameters)
        self._parameters = every[:: -(-len(every) // _LOOKED_AT)]
        self._remarks = remarks
        self._versions: int | None = None  # None: a step was seen since the last forward
        self._changes = 0  # since the last step that was seen
        self._most: int | None = None  # before one step; None: none was seen

    def look(self) -> None:
        """The training begins a forward."""
        versions = sum(parameter._version for parameter in self._parameters)
        self._changes += self._versions not in (None, versions)
        self._versions = versions
        if self._most is not None and self._changes == max(_TELL_AFTER, 4 * self._most):
            self._remarks.say(
                f"the weights have changed {self._changes} times since step "
                f"{self._remarks.steps} without a step of the optimizer that was given: does "
                "another optimizer train the model now? Nothing of it is measured or matched; "
                "close FLeRM and attach it to that optimizer"
            )

    def seen(self) -> None:
        """An optimiser that was given begins a step."""
        self._most = max(self._most or 0, self._changes)
        self._versions, self._changes = None, 0
