"""The trajectory of all FSLRs over one run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flerm_core import _trajectory_formats
from flerm_core._arrays import check_length, column_of, steps_of, thin, values_of
from flerm_core.errors import InvalidInput, NotFound, join_names
from flerm_core.log_interpolation import geometric_mean, interpolate_rows, log_spread
from flerm_core.parameter_bands import bands_of
from flerm_core.records.recording import Measurement, ParameterList
from flerm_core.run_clock import Reading, step_at

if TYPE_CHECKING:
    import pandas


class Trajectory:
    """FSLRs of L parameters at T optimiser steps of one run.

    names [L]: canonical names. A name with `*` for block numbers is a depth group; its FSLR is that
        of a joint change.
    shapes [L]: of the parameters; () for a depth group.
    steps: int64 [T], ascending, counted from 1.
    values: float32 [T, L] in output units per unit learning rate; NaN: unmeasured.
    bands [L]: found from names and shapes where not given.
    losses, learning_rates: float64 [T]; NaN: not logged.
    tokens: int64 [T], seen by that step; -1: not logged.

    The arrays are read-only, and share the memory of what was given where the types allow it.
    Raises `InvalidInput` for what does not fit together.
    """

    def __init__(
        self,
        names: Sequence[str],
        shapes: Sequence[Sequence[int]],
        steps: ArrayLike,
        values: ArrayLike,
        *,
        bands: Sequence[str] | None = None,
        losses: ArrayLike | None = None,
        learning_rates: ArrayLike | None = None,
        tokens: ArrayLike | None = None,
    ) -> None:
        self.names = list(names)
        self.shapes = [tuple(int(size) for size in shape) for shape in shapes]
        check_length("shapes", len(self.shapes), len(self.names), "names")
        repeated = len(self.names) - len(set(self.names))
        if repeated:
            raise InvalidInput(
                f"names: {repeated} of the {len(self.names)} names are there twice; each is "
                "allowed once"
            )
        self.bands = list(bands) if bands is not None else bands_of(self.names, self.shapes)
        check_length("bands", len(self.bands), len(self.names), "names")
        self.steps: NDArray[np.int64] = steps_of(steps)
        rows = len(self.steps)
        self.values: NDArray[np.float32] = values_of(values, rows, len(self.names))
        self.losses: NDArray[np.float64] = column_of("losses", losses, rows, np.nan, np.float64)
        self.learning_rates: NDArray[np.float64] = column_of(
            "learning_rates", learning_rates, rows, np.nan, np.float64
        )
        self.tokens: NDArray[np.int64] = column_of("tokens", tokens, rows, -1, np.int64)

    @classmethod
    def from_measurements(
        cls, parameters: ParameterList, rows: Iterable[Measurement]
    ) -> Trajectory:
        """The trajectory of measurements, given in the order of their steps.

        Auxiliary values are left out.
        """
        found = list(rows)
        for row in found:
            check_length(f"values at step {row.step}", len(row.values), len(parameters), "names")
        return cls(
            parameters.names,
            parameters.shapes,
            [row.step for row in found],
            np.array([row.values for row in found], np.float32).reshape(
                len(found), len(parameters)
            ),
            bands=parameters.bands,
            losses=[np.nan if row.loss is None else row.loss for row in found],
            learning_rates=[
                np.nan if row.learning_rate is None else row.learning_rate for row in found
            ],
            tokens=[-1 if row.tokens is None else row.tokens for row in found],
        )

    @property
    def parameters(self) -> ParameterList:
        """Names, shapes and bands as one value."""
        return ParameterList(tuple(self.names), tuple(self.shapes), tuple(self.bands))

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Measurement]:
        """The rows, in the order of their steps."""
        for at, step in enumerate(self.steps):
            loss, rate = float(self.losses[at]), float(self.learning_rates[at])
            tokens = int(self.tokens[at])
            yield Measurement(
                step=int(step),
                values=self.values[at],
                loss=None if np.isnan(loss) else loss,
                learning_rate=None if np.isnan(rate) else rate,
                tokens=None if tokens < 0 else tokens,
            )

    def __repr__(self) -> str:
        span = f", steps {self.steps[0]} to {self.steps[-1]}" if len(self) else ""
        return f"Trajectory({len(self.names)} parameters, {len(self)} rows{span})"

    def figure(self, pattern: str = "") -> dict[str, Any]:
        """The FSLRs over steps as a plotly figure dictionary.

        `plotly.graph_objects.Figure(trajectory.figure())` draws it.

        pattern: a shell-style pattern of tensors that get lines of their own. See
            `flerm_core.figures.fslr_figure`.
        """
        from flerm_core.figures.trajectory_figure import fslr_figure  # as in _repr_mimebundle_

        return fslr_figure(self, self.select(pattern).names if pattern else ())

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        """What a notebook shows: the figure where it can draw figures, else a table of bands."""
        # Figures are loaded where one is drawn: every command waits for what this module imports.
        from flerm_core.figures.notebook import mime_bundle

        return mime_bundle(self)

    def __eq__(self, other: object) -> bool:
        """Whether all of it is equal, NaN to NaN."""
        if not isinstance(other, Trajectory):
            return NotImplemented
        return (
            self.parameters == other.parameters
            and np.array_equal(self.steps, other.steps)
            and np.array_equal(self.tokens, other.tokens)
            and all(
                np.array_equal(mine, its, equal_nan=True)
                for mine, its in (
                    (self.values, other.values),
                    (self.losses, other.losses),
                    (self.learning_rates, other.learning_rates),
                )
            )
        )

    __hash__ = None  # type: ignore[assignment]

    def at(self, step: float | None = None) -> dict[str, float]:
        """Name to FSLR at `step`; None: the first row.

        NaN where a tensor had not been measured by then. Between rows as in `resampled`.
        """
        if not len(self):
            raise NotFound(f"step: {step} asked of a trajectory without rows")
        row = self.resampled([self.steps[0] if step is None else step])[0]
        return dict(zip(self.names, row.tolist(), strict=True))

    def step_at(
        self,
        *,
        step: Reading | None = None,
        tokens: Reading | None = None,
        fraction: Reading | None = None,
    ) -> float:
        """The step of this run at a position, which at most one of the arguments gives.

        step: the step itself.
        tokens: the number of tokens that the run had seen at the position.
        fraction: the position as a part of the last row's step, in [0, 1]. (A trajectory does not
            know at which step its run ended.)

        Without an argument it is the first row's step. Raises as `Targets.step_at` does, and
        `NotFound` where there are no rows.
        """
        if not len(self):
            raise NotFound(
                "a trajectory without rows was asked for a moment; it needs one at least"
            )
        readings = {"step": step, "tokens": tokens, "fraction": fraction}
        return step_at(
            readings, self.steps, self.tokens, int(self.steps[-1]), "the run of this trajectory"
        )

    def resampled(self, steps: ArrayLike) -> NDArray[np.float64]:
        """FSLRs at any `steps` [S], not only the measured: float64 [S, L].

        Between two measurements of a tensor the logarithm of the FSLR is linear in the step; rows
        where the tensor is unmeasured are passed over. After the last measurement its value holds,
        and before the first row the first row's. A tensor that is first measured in a later row is
        NaN until that row. Raises `InvalidInput` for a step that is negative or not finite.
        """
        asked = np.asarray(steps, np.float64)
        if not np.isfinite(asked).all() or (asked < 0).any():
            raise InvalidInput(
                f"step: {asked.tolist()} has what is not a step; allowed are finite numbers from 0"
            )
        return interpolate_rows(self.steps, self.values, asked)

    def between(self, first: int | None = None, last: int | None = None) -> Trajectory:
        """The rows of steps `first` to `last`, both included; None: no bound."""
        low = 0 if first is None else int(np.searchsorted(self.steps, first, "left"))
        high = len(self) if last is None else int(np.searchsorted(self.steps, last, "right"))
        return self._rows(np.arange(low, max(low, high)))

    def thinned(self, max_points: int) -> Trajectory:
        """At most `max_points` rows, evenly chosen, the first and the last among them; 0: all."""
        return self if max_points <= 0 else self._rows(thin(len(self), max_points))

    def _rows(self, at: NDArray[np.int64]) -> Trajectory:
        return Trajectory(
            self.names,
            self.shapes,
            self.steps[at],
            self.values[at],
            bands=self.bands,
            losses=self.losses[at],
            learning_rates=self.learning_rates[at],
            tokens=self.tokens[at],
        )

    def select(self, pattern: str | Sequence[str]) -> Trajectory:
        """The parameters whose names match a shell-style pattern, or any of several.

        Raises `NotFound` when none does.
        """
        patterns = [pattern] if isinstance(pattern, str) else list(pattern)
        at = [
            i
            for i, name in enumerate(self.names)
            if any(fnmatchcase(name, each) for each in patterns)
        ]
        if not at:
            raise NotFound(
                f"pattern: {pattern!r} matches none of the parameters; there are "
                f"{join_names(self.names)}"
            )
        return self._with(self.parameters.select(at), self.values[:, at])

    def _with(self, parameters: ParameterList, values: NDArray[np.floating]) -> Trajectory:
        return Trajectory(
            parameters.names,
            parameters.shapes,
            self.steps,
            values,
            bands=parameters.bands,
            losses=self.losses,
            learning_rates=self.learning_rates,
            tokens=self.tokens,
        )

    def smoothed(self, ema_decay: float) -> Trajectory:
        """The FSLRs as the root of an exponential moving average of their squares over rows.

        The square is averaged because a draw estimates the squared FSLR without bias. Weights are
        normalised, so that the first rows are not drawn towards 0. NaN stays NaN and does not enter
        the average.

        ema_decay: in [0, 1), the weight of the row before; 0 changes nothing. The average lags:
            with 0.9 and a measurement every 100 steps a falling FSLR reads about twice too high.

        Raises `InvalidInput` for a value out of range.
        """
        if not 0 <= ema_decay < 1:
            raise InvalidInput(
                f"ema_decay: {ema_decay} is out of range; allowed are numbers from 0 up to, not "
                "including, 1"
            )
        squares = self.values.astype(np.float64) ** 2
        mean, weight = np.zeros(len(self.names)), np.zeros(len(self.names))
        smooth = np.full(squares.shape, np.nan)
        for at, row in enumerate(squares):
            seen = ~np.isnan(row)
            weight[seen] = ema_decay * weight[seen] + 1
            mean[seen] += (row[seen] - mean[seen]) / weight[seen]
            smooth[at, seen] = np.sqrt(mean[seen])
        return self._with(self.parameters, smooth)

    @classmethod
    def average(cls, trajectories: Sequence[Trajectory]) -> tuple[Trajectory, NDArray[np.float64]]:
        """The geometric mean of several seeds of one model, and their spread.

        docs/decisions.md, 7, has the reasons. The spread is the standard deviation of ln FSLR over
        the seeds, float64 [T, L]; NaN where fewer than two seeds measured. Runs that were measured
        at different steps are all read at the union of their steps. A seed that did not measure a
        tensor does not count for that tensor. Losses and learning rates are averaged over the seeds
        that logged them; tokens stay where all seeds agree, and are -1 elsewhere. Raises
        `InvalidInput` when there are no trajectories or their parameters differ.
        """
        if not trajectories:
            raise InvalidInput("trajectories: none given; an average needs at least one")
        first = trajectories[0]
        for other in trajectories[1:]:
            apart = difference(first, other)
            if apart:
                raise InvalidInput(f"trajectories: {apart}; only runs of one model can be averaged")
        steps = np.unique(np.concatenate([each.steps for each in trajectories]))
        stack = np.stack([each.resampled(steps) for each in trajectories])
        columns = [_logged_columns(each, steps) for each in trajectories]
        tokens = np.stack([each[2] for each in columns])
        mean = cls(
            first.names,
            first.shapes,
            steps,
            geometric_mean(stack),
            bands=first.bands,
            losses=_mean(np.stack([each[0] for each in columns])),
            learning_rates=_mean(np.stack([each[1] for each in columns])),
            tokens=np.where((tokens == tokens[0]).all(axis=0), tokens[0], -1),
        )
        return mean, log_spread(stack)

    def to_dataframe(self) -> pandas.DataFrame:
        """A pandas DataFrame indexed by `step`.

        Its columns are `loss`, `learning_rate`, `tokens`, then one for each parameter. What was not
        logged or measured is missing (NaN; <NA> for tokens). Raises `Unsupported` where pandas is
        not installed.
        """
        return _trajectory_formats.to_dataframe(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes everything to one .npz file without pickles.

        A failed write leaves the old file as it was.
        """
        _trajectory_formats.write_file(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trajectory:
        """The trajectory that `save` wrote.

        Raises `NotFound` for a missing file, `DataLoss` for a damaged file or another format.
        """
        return _trajectory_formats.read_file(path, cls)


def difference(first: Trajectory, other: Trajectory) -> str:
    """A sentence on how the parameters of two trajectories differ; empty when they are the same."""
    if set(first.names) != set(other.names):
        apart = sorted(set(first.names) ^ set(other.names))
        return f"only some of them have {join_names(apart)}"
    if first.names != other.names:
        return "their parameters stand in different orders"
    return next(
        (
            f"{name!r} is of shape {list(mine)} in one and {list(its)} in another"
            for name, mine, its in zip(first.names, first.shapes, other.shapes, strict=True)
            if mine != its
        ),
        "",
    )


def _logged_columns(
    trajectory: Trajectory, steps: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Losses, learning rates and tokens at `steps`; NaN or -1 at a step that has no row."""
    at = np.searchsorted(steps, trajectory.steps)
    losses, rates = np.full((2, len(steps)), np.nan)
    tokens = np.full(len(steps), -1, np.int64)
    losses[at], rates[at] = trajectory.losses, trajectory.learning_rates
    tokens[at] = trajectory.tokens
    return losses, rates, tokens


def _mean(stack: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over axis 0 of the values that are not NaN; NaN where all are."""
    seen = ~np.isnan(stack)
    count = seen.sum(axis=0)
    total = np.where(seen, stack, 0.0).sum(axis=0)
    mean: NDArray[np.float64] = np.divide(
        total, count, out=np.full(total.shape, np.nan), where=count > 0
    )
    return mean
