"""Estimators from Z = ΔW ⊙ ∂φ/∂W (Eq. 8): `full`, `iid` and the paper's `kronecker`.

Δ_ℓφ = Σ Z has mean 0 and variance FSLR² (Eq. 7 and 9). The three estimators differ in what they
assume about the covariance of Z's elements, and so in which sums over Z they average.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flerm_core.errors import InvalidInput
from flerm_core.measure.autodiff.gradient_stream import stream_gradients
from flerm_core.measure.distributed.sharding import LocalShard
from flerm_core.measure.estimators.base import Draw, Estimator, OutputLayer, ReductionScope
from flerm_core.measure.measured_model import MeasuredModel
from flerm_core.measure.output_projection import draw_projection, projection_scale
from flerm_core.measure.update.chunking import chunks
from flerm_core.measure.update.weight_update import WeightUpdate


class SquaredSums(Estimator):
    """Draws s_0 = Σ Z² and, for each dimension d of the tensor, s_d = Σ (Σ_{i_d} Z)² (Eq. 27c).

    The inner sum of s_d runs over dimension d, the outer one over all others. A scalar counts as a
    tensor of one dimension. `_fslr` makes the FSLR of a tensor from the means of s_0 … s_D.

    The statistics are s_0, s_1 … s_D of every tensor in turn. Where dimension d is sharded, the
    sums Σ_{i_d} Z must be complete before they are squared. So a draw then has this rank's part of
    Σ_{i_d} Z in place of s_d: one number for each index of the other dimensions.
    """

    def __init__(self, model: MeasuredModel, output_layer: OutputLayer | None = None) -> None:
        super().__init__(model, output_layer)
        self.reduction: ReductionScope = "local" if model.sharding is None else "world"
        # Where the statistics of each tensor are among all statistics.
        self._statistics: dict[str, slice] = {}
        # Where each tensor's s_0, s_1 … s_D are in a draw.
        self._sums: dict[str, list[slice]] = {}
        self._n_partial_sums = self._n_statistics = 0
        for name, parameter in model.parameters.items():
            dims = range(max(parameter.ndim, 1))
            self._sums[name] = [
                self._append(1),
                *(self._append(self._sums_of(name, d)) for d in dims),
            ]
            start, self._n_statistics = self._n_statistics, self._n_statistics + len(dims) + 1
            self._statistics[name] = slice(start, self._n_statistics)

    def _sums_of(self, name: str, dim: int) -> int:
        """How many numbers a draw has for s_d."""
        shard = _shard(self.model, name)
        return shard.sum_numel(dim) if shard is not None and dim in shard.shard_dims else 1

    def _append(self, length: int) -> slice:
        """Reserves `length` further numbers in a draw."""
        start, self._n_partial_sums = self._n_partial_sums, self._n_partial_sums + length
        return slice(start, self._n_partial_sums)

    @property
    def n_statistics(self) -> int:
        """Σ (D_ℓ + 1) over all tensors ℓ."""
        return self._n_statistics

    def draw(self, batch: Any, update: WeightUpdate, generator: torch.Generator) -> Draw:
        """s_0, s_1 … s_D of every tensor in turn, or this rank's partial sums."""
        outputs = self.model.outputs(batch)
        found = torch.zeros(self._n_partial_sums, dtype=torch.float64, device=outputs.device)

        def add(name: str, gradient: Tensor) -> None:
            shard = _shard(self.model, name)
            at_squares, *at_sums = self._sums[name]
            over_rows: Tensor | None = None  # Σ over dimension 0, complete after the last chunk
            for z in iter_z(self.model, update, name, gradient):
                found[at_squares] += _sum_of_squares(z).to(found.device)
                for dim, at in enumerate(at_sums):
                    if shard is not None and dim in shard.shard_dims:
                        found[at] += shard.sum_over(z, dim).to(found.device)
                    elif dim > 0:
                        found[at] += _sum_of_squares(z.sum(dim)).to(found.device)
                    else:
                        rows = z.sum(0)
                        over_rows = rows if over_rows is None else over_rows.add_(rows)
            if over_rows is not None:
                found[at_sums[0]] += _sum_of_squares(over_rows).to(found.device)

        direction = projection_of(self.model, outputs, generator)
        stream_gradients(outputs, direction, self.model, add)
        return Draw(found * square_scale(self.model, outputs), outputs.numel())

    def reduce_parts(self, partial_sums: Tensor) -> Tensor:
        """s_0, s_1 … s_D of every tensor in turn."""
        if self.model.sharding is None:
            return partial_sums
        statistics = []
        for name, (at_squares, *at_sums) in self._sums.items():
            shard = _shard(self.model, name)
            statistics.append(partial_sums[at_squares])
            for dim, at in enumerate(at_sums):
                sums = partial_sums[at]
                is_sharded = shard is not None and dim in shard.shard_dims
                statistics.append(sums.square().sum().reshape(1) if is_sharded else sums)
        return torch.cat(statistics)

    def fslrs(self, mean: NDArray[np.float64]) -> dict[str, float]:
        """The FSLR of every tensor."""
        return {name: self._fslr(name, mean[at]) for name, at in self._statistics.items()}

    @abstractmethod
    def _fslr(self, name: str, means: NDArray[np.float64]) -> float:
        """The FSLR of a tensor from E[s_0], E[s_1] … E[s_D]."""


class Kronecker(SquaredSums):
    """FSLR = √(Π_d E[s_d] / E[s_0]^(D−1)) (Eq. 28).

    The formula assumes that the covariance of Z is a Kronecker product of one matrix per dimension
    (Eq. 11).

    For the output layer no such assumption is needed. Output f_nk depends only on row k of the
    layer's weight, and ω_nk is independent between outputs, so the rows of Z are independent. Where
    `output_layer` names the layer, its weight has FSLR² = E[Σ_k (Σ_j Z_kj)²], and its bias
    FSLR² = E[Σ_k Z_k²] = E[s_0]. Both are unbiased.

    Raises `InvalidInput` where the named weight is no measured tensor of 2 dimensions, or the named
    bias none of 1.
    """

    name = "kronecker"

    def __init__(self, model: MeasuredModel, output_layer: OutputLayer | None = None) -> None:
        super().__init__(model, output_layer)
        for field, name, ndim in (
            ("output_weight", self.output_layer.weight, 2),
            ("output_bias", self.output_layer.bias, 1),
        ):
            if name and (name not in model.parameters or model.parameters[name].ndim != ndim):
                raise InvalidInput(
                    f"{field}={name!r} is not a measured tensor of {ndim} dimensions; there are: "
                    f"{', '.join(model.parameters)}"
                )

    def _fslr(self, name: str, means: NDArray[np.float64]) -> float:
        squares, sums = means[0], means[1:]
        if name == self.output_layer.weight:
            return float(np.sqrt(sums[1]))
        if name == self.output_layer.bias or not squares > 0.0:
            return float(np.sqrt(squares))
        # In the log domain, as Appendix B advises. A sum that cancels exactly has log(0) = -inf and
        # gives FSLR 0: the outputs did not move.
        with np.errstate(divide="ignore"):
            return float(np.exp(0.5 * (np.log(sums).sum() - (len(sums) - 1) * np.log(squares))))


class Independent(SquaredSums):
    """FSLR = √E[s_0], as if all elements of Z were independent (Section 3.2).

    They seldom are, so the FSLR may be far off (docs/estimators.md). This estimator is there to
    compare others with.
    """

    name = "iid"

    def _fslr(self, name: str, means: NDArray[np.float64]) -> float:
        return float(np.sqrt(means[0]))


class Full(Estimator):
    """FSLR = √E[(Σ Z)²] (Eq. 7): unbiased for any covariance of Z, and noisy.

    A draw is one sample per tensor.
    """

    name = "full"

    def __init__(self, model: MeasuredModel, output_layer: OutputLayer | None = None) -> None:
        super().__init__(model, output_layer)
        self.reduction: ReductionScope = "local" if model.sharding is None else "world"

    @property
    def n_statistics(self) -> int:
        """One per tensor."""
        return len(self.model.parameters)

    def draw(self, batch: Any, update: WeightUpdate, generator: torch.Generator) -> Draw:
        """(Δ_ℓφ)² of every tensor in turn (Eq. 4); of a sharded one, this rank's part of Δ_ℓφ."""
        outputs = self.model.outputs(batch)
        found = torch.zeros(self.n_statistics, dtype=torch.float64, device=outputs.device)
        positions = {name: i for i, name in enumerate(self.model.parameters)}

        def add(name: str, gradient: Tensor) -> None:
            change = sum_of_z(self.model, update, name, gradient)
            is_sharded = _shard(self.model, name) is not None
            found[positions[name]] = change if is_sharded else change.square()

        direction = projection_of(self.model, outputs, generator)
        stream_gradients(outputs, direction, self.model, add)
        return Draw(found * square_scale(self.model, outputs), outputs.numel())

    def reduce_parts(self, partial_sums: Tensor) -> Tensor:
        """(Δ_ℓφ)² of every tensor in turn."""
        if self.model.sharding is None:
            return partial_sums
        is_sharded = torch.tensor(
            [name in self.model.sharding.shards for name in self.model.parameters],
            device=partial_sums.device,
        )
        return torch.where(is_sharded, partial_sums.square(), partial_sums)

    def fslrs(self, mean: NDArray[np.float64]) -> dict[str, float]:
        """The root of each mean."""
        return dict(zip(self.model.parameters, np.sqrt(mean).tolist(), strict=True))


def _shard(model: MeasuredModel, name: str) -> LocalShard | None:
    return None if model.sharding is None else model.sharding.shards.get(name)


def iter_z(
    model: MeasuredModel, update: WeightUpdate, name: str, gradient: Tensor
) -> Iterator[Tensor]:
    """Z of tensor `name`, in chunks of rows, so that no temporary is as large as the tensor.

    A chunk has at least one dimension. A sharded tensor gives this rank's part in one chunk, and no
    chunk where another rank holds the same part and counts it.
    """
    sharding = model.sharding
    if sharding is not None:
        gradient = sharding.local_gradient(name, gradient)
        if sharding.is_primary_replica(name):
            yield torch.atleast_1d(update.change(name).mul_(gradient))
    elif gradient.ndim == 0:
        yield torch.atleast_1d(update.change(name).mul_(gradient))
    else:
        for rows in chunks(gradient.shape, gradient.device):
            yield update.change(name, rows).mul_(gradient[rows])


def sum_of_z(model: MeasuredModel, update: WeightUpdate, name: str, gradient: Tensor) -> Tensor:
    """Δ_ℓφ = Σ Z of tensor `name` (Eq. 8), float64 []; this rank's part of a sharded tensor."""
    total = torch.zeros((), dtype=torch.float64, device=gradient.device)
    for z in iter_z(model, update, name, gradient):
        total += z.sum(dtype=torch.float64)
    return total


def _sum_of_squares(values: Tensor) -> Tensor:
    return values.square().sum(dtype=torch.float64)


def projection_of(model: MeasuredModel, outputs: Tensor, generator: torch.Generator) -> Tensor:
    """∂φ/∂f [N, ...], the direction of the backward pass.

    Where tensors are sharded, gradients are summed over ranks before an estimator sees them. The
    outputs of all ranks must then have equal weight. So the direction is ω itself, without the
    factor 1/√(NK), which differs between ranks.
    """
    direction = draw_projection(outputs, generator, sums_examples=True)
    return direction if model.sharding is None else direction / projection_scale(outputs)


def square_scale(model: MeasuredModel, outputs: Tensor) -> float:
    """The factor from squares under `projection_of` to squares under ω (see `Estimator.draw`)."""
    return projection_scale(outputs) ** -2 if model.sharding is None else 1.0
