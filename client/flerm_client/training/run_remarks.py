"""What a run says of what was not measured or matched: at once as warnings, and at its end."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from flerm_core._warnings import warn
from flerm_core.errors import join_names, printable
from flerm_core.records.validation import MAX_REMARK, MAX_REMARKS


class RunRemarks:
    """The sentences of one run, and the facts that its last ones follow from.

    optimizers: for each optimiser its class name and the tensors that it steps.
    silent: whether another rank says what there is to say.

    Holds no part of the model, because it lives until the process ends.

    steps: the optimiser steps that were counted.
    stepped: the optimisers that ever made a step, by index.
    failed: whether a measurement was tried, and failed.
    to_match, matched: whether the run has targets, and whether any tensor was matched to its own.
    without_fslr: tensors that changed in a step whose measurement found no FSLR of theirs.
    """

    def __init__(
        self, optimizers: Sequence[tuple[str, Collection[str]]] = (), *, silent: bool = False
    ) -> None:
        self.steps = 0
        self.stepped: set[int] = set()
        self.failed = False
        self.to_match = False
        self.matched = False
        self.without_fslr: dict[str, None] = {}
        self._optimizers = optimizers
        self._silent = silent
        self._kept: dict[str, None] = {}

    @property
    def how_it_goes_on(self) -> str:
        """At which rates the run goes on after a measurement that failed."""
        return "at the multipliers that it has" if self.to_match else "as without FLeRM"

    def say(self, sentence: str) -> None:
        """Warns of `sentence` now, and keeps it for the run's end."""
        if not self._silent:
            self.keep(sentence)
            warn(sentence)

    def keep(self, sentence: str) -> None:
        """Keeps `sentence` for the run's end."""
        if not self._silent:
            self._kept[_short(sentence)] = None

    def idle_optimizers(self) -> str:
        """Which optimisers have made no step while others did; empty where there are none."""
        idle = [i for i in range(len(self._optimizers)) if i not in self.stepped]
        if not idle or not self.stepped:
            return ""
        which = ", ".join(f"number {i + 1} ({self._optimizers[i][0]})" for i in idle)
        names = sorted({name for i in idle for name in self._optimizers[i][1]})
        return (
            f"of {len(self._optimizers)} optimizers, {which} has made no step while others made "
            "several: a step counts, and is measured and matched, when every optimizer has made "
            f"its part. Leave those that never step out of optimizer=. Tensors: {join_names(names)}"
        )

    def at_end(self, measured: Mapping[str, bool], *, warns: bool) -> tuple[str, ...]:
        """All sentences of a run that ends, those that follow from the whole run first.

        measured: of every tensor, whether any measurement has an FSLR of its; empty where the run
            has no measurement.
        warns: whether the sentences that are new are warned of.
        """
        new = [each for each in self._of_the_whole_run(measured) if not self._silent]
        for sentence in new if warns else ():
            warn(sentence)
        return tuple(dict.fromkeys([*map(_short, new), *self._kept]))[:MAX_REMARKS]

    def _of_the_whole_run(self, measured: Mapping[str, bool]) -> list[str]:
        if not measured:
            return [f"this run has measured nothing: {self._why_nothing()}"]
        found = []
        if self.to_match and not self.matched:
            found.append(
                "this run has matched no tensor: none was due (start=, every=), or none had both "
                "a target and an FSLR above noise; all ran at the optimizer's own rates"
            )
        names = [name for name in self.without_fslr if not measured.get(name)]
        if names:
            found.append(unmeasured_sentence("the run", names))
        return found

    def _why_nothing(self) -> str:
        if self.failed:
            return "every measurement failed"
        if self.steps:
            return (
                f"of {self.steps} steps none was due (start=, every=), changed a weight, or ran at "
                "a rate above 0"
            )
        if self.stepped:
            idle = self.idle_optimizers()
            return (
                "no step was counted, because one of the optimizers never made its part of it"
                + (f"; {idle}" if idle else "")
            )
        return (
            "no step was made through the optimizer that was given; "
            "is it another object that trains the model?"
        )


def unmeasured_sentence(who: str, names: Sequence[str]) -> str:
    """That `who` changed the tensors `names`, for which nothing was measured."""
    return (
        f"{who} changed {len(names)} tensors that have no FSLR, so that nothing is recorded or "
        "matched for them: the probe's outputs do not depend on them, or do so in a way that the "
        f"estimator does not see (estimator='exact' does): {join_names(names)}"
    )


def _short(sentence: str) -> str:
    text = printable(sentence)
    return text if len(text) <= MAX_REMARK else f"{text[: MAX_REMARK - 1]}…"
