"""Estimators from Z = ΔW ⊙ ∂φ/∂W: `kronecker` (Section 3.2, Appendix B), `iid` and `full` (Section 3.1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flerm_core.errors import InvalidInput
from flerm_core.measure.autodiff.gradient_stream import stream_gradients
from flerm_core.measure.distributed.sharding import LocalShard
from flerm_core.measure.estimators.base import Estimator, OutputLayer, ReductionScope
from flerm_core.measure.measured_model import MeasuredModel
from flerm_core.measure.output_projection import draw_projection, projection_scale
from flerm_core.measure.update.chunking import chunks
from flerm_core.measure.update.weight_update import WeightUpdate


class Kronecker(Estimator):
    """FSLR = √(Π_d E[s_d] / E[s_0]^(D−1)) with s_0 = Σ Z² and s_d = Σ (Σ_{i_d} Z)² (Eq. 28), in the log domain.

    Scalars count as rank 1.

    The rows of the output layer are independent (f_nk depends on row k alone); named, its weight uses Σ_k (Σ_j Z_kj)² and its
    bias Σ_k Z_k², both unbiased.
    """

    name = "kronecker"

    def __init__(self, model: MeasuredModel, output_layer: OutputLayer | None = None) -> None:
        super().__init__(model, output_layer)
        subject = model
        output_weight, output_bias = self.output_layer.weight, self.output_layer.bias
        for field, name, rank in (
            ("output_weight", output_weight, 2),
            ("output_bias", output_bias, 1),
        ):
            if name and (name not in subject.parameters or subject.parameters[name].ndim != rank):
                raise InvalidInput(
                    f"{field}={name!r} is not a measured tensor of rank {rank}; there are: {', '.join(subject.parameters)}"
                )
        self._output_weight, self._output_bias = output_weight, output_bias
        self._slices: dict[str, slice] = {}
        self._places: dict[str, list[slice]] = {}  # in the parts: that of s_0, then of each s_d
        self._parts = start = 0
        for name, parameter in subject.parameters.items():
            stop = start + max(parameter.ndim, 1) + 1
            self._slices[name] = slice(start, stop)
            start = stop
            self._places[name] = [self._place(length) for length in self._lengths(name, parameter)]
        self._columns = start
        self.reduction: ReductionScope = "local" if subject.sharding is None else "world"

    def _lengths(self, name: str, parameter: Tensor) -> list[int]:
        part = _part(self.model, name)
        return [1] + [
            part.sum_length(dim) if part is not None and dim in part.cut else 1
            for dim in range(max(parameter.ndim, 1))
        ]

    def _place(self, length: int) -> slice:
        self._parts += length
        return slice(self._parts - length, self._parts)

    @property
    def n_statistics(self) -> int:
        """Σ (D_ℓ + 1)."""
        return self._columns

    def draw(
        self, batch: Any, update: WeightUpdate, generator: torch.Generator
    ) -> tuple[Tensor, int]:
        """s_0, s_1 … s_D of every tensor in turn. Of a sharded one, this rank's part of them: where Z is cut along d, all
        the sums Σ_{i_d} Z, as only the whole ones may be squared."""
        outputs = self.model.outputs(batch)
        parts = torch.zeros(self._parts, dtype=torch.float64, device=outputs.device)

        def consume(name: str, gradient: Tensor) -> None:
            part = _part(self.model, name)
            squared, *summed = self._places[name]
            first: Tensor | None = None  # Σ over dimension 0, which goes through all slabs
            for z in slabs_of_z(self.model, update, name, gradient):
                parts[squared] += _squares(z).to(parts.device)
                for dim, place in enumerate(summed):
                    if part is not None and dim in part.cut:
                        parts[place] += part.sum_over(z, dim).to(parts.device)
                    elif dim > 0:
                        parts[place] += _squares(z.sum(dim)).to(parts.device)
                    else:
                        first = z.sum(0) if first is None else first.add_(z.sum(0))
            if first is not None:
                parts[summed[0]] += _squares(first).to(parts.device)

        stream_gradients(
            outputs, projection_of(self.model, outputs, generator), self.model, consume
        )
        return parts * scale_of(self.model, outputs), outputs.numel()

    def reduce_parts(self, parts: Tensor) -> Tensor:
        """s_0, s_1 … s_D of every tensor in turn."""
        if self.model.sharding is None:
            return parts
        numbers = []
        for name, (squared, *summed) in self._places.items():
            part = _part(self.model, name)
            numbers.append(parts[squared])
            for dim, place in enumerate(summed):
                cut = part is not None and dim in part.cut
                numbers.append(parts[place].square().sum().reshape(1) if cut else parts[place])
        return torch.cat(numbers)

    def fslrs(self, mean: NDArray[np.float64]) -> dict[str, float]:
        """Eq. 28, tensor by tensor."""
        return {name: self._fslr(name, mean[columns]) for name, columns in self._slices.items()}

    def _fslr(self, name: str, sums: NDArray[np.float64]) -> float:
        total, by_dimension = sums[0], sums[1:]
        if name == self._output_weight:
            return float(np.sqrt(by_dimension[1]))
        if name == self._output_bias or not total > 0.0:
            return float(np.sqrt(total))
        # A sum that cancels exactly leaves log(0) = -inf and so FSLR 0: nothing moved the outputs.
        with np.errstate(divide="ignore"):
            return float(
                np.exp(0.5 * (np.log(by_dimension).sum() - (len(by_dimension) - 1) * np.log(total)))
            )


class Independent(Kronecker):
    """FSLR = √E[Σ Z²]: all elements of Z independent. Far off where they are not (docs/estimators.md); kept to compare."""

    name = "iid"

    def __init__(self, model: MeasuredModel, output_layer: OutputLayer | None = None) -> None:
        super().__init__(model)

    def _fslr(self, name: str, sums: NDArray[np.float64]) -> float:
        return float(np.sqrt(sums[0]))


class Full(Estimator):
    """FSLR = √E[(Σ Z)²] (Eq. 7): unbiased, and noisy; one number of one degree of freedom per draw."""

    name = "full"

    def __init__(self, model: MeasuredModel, output_layer: OutputLayer | None = None) -> None:
        super().__init__(model, output_layer)
        subject = model
        self.reduction: ReductionScope = "local" if subject.sharding is None else "world"

    @property
    def n_statistics(self) -> int:
        """One per tensor."""
        return len(self.model.parameters)

    def draw(
        self, batch: Any, update: WeightUpdate, generator: torch.Generator
    ) -> tuple[Tensor, int]:
        """(Δ_ℓφ)² of every tensor in turn (Eq. 4); of a sharded one, this rank's part of Δ_ℓφ."""
        outputs = self.model.outputs(batch)
        parts = torch.zeros(self.n_statistics, dtype=torch.float64, device=outputs.device)
        positions = {name: i for i, name in enumerate(self.model.parameters)}

        def consume(name: str, gradient: Tensor) -> None:
            moved = sum_of_z(self.model, update, name, gradient)
            parts[positions[name]] = (
                moved if _part(self.model, name) is not None else moved.square()
            )

        stream_gradients(
            outputs, projection_of(self.model, outputs, generator), self.model, consume
        )
        return parts * scale_of(self.model, outputs), outputs.numel()

    def reduce_parts(self, parts: Tensor) -> Tensor:
        """(Δ_ℓφ)² of every tensor in turn."""
        if self.model.sharding is None:
            return parts
        sharded = torch.tensor(
            [name in self.model.sharding.parts for name in self.model.parameters],
            device=parts.device,
        )
        return torch.where(sharded, parts.square(), parts)

    def fslrs(self, mean: NDArray[np.float64]) -> dict[str, float]:
        """The root of each mean."""
        return dict(zip(self.model.parameters, np.sqrt(mean).tolist(), strict=True))


def _part(subject: MeasuredModel, name: str) -> LocalShard | None:
    return None if subject.sharding is None else subject.sharding.parts.get(name)


def slabs_of_z(
    subject: MeasuredModel, update: WeightUpdate, name: str, gradient: Tensor
) -> Iterator[Tensor]:
    """Z of `name` slab by slab: one of the size of the tensor never exists. Sharded, this rank's part of it at once, and
    nothing where another rank's equal part counts."""
    sharding = subject.sharding
    if sharding is not None:
        gradient = sharding.gradient(name, gradient)
        if sharding.counts(name):
            yield _with_dimension(update.change(name).mul_(gradient))
    elif gradient.ndim == 0:
        yield _with_dimension(update.change(name).mul_(gradient))
    else:
        for rows in chunks(gradient.shape, gradient.device):
            yield update.change(name, rows).mul_(gradient[rows])


def sum_of_z(subject: MeasuredModel, update: WeightUpdate, name: str, gradient: Tensor) -> Tensor:
    """Σ Z of `name` [] float64, of this rank's part where it is sharded."""
    total = torch.zeros((), dtype=torch.float64, device=gradient.device)
    for z in slabs_of_z(subject, update, name, gradient):
        total += z.sum(dtype=torch.float64)
    return total


def _with_dimension(z: Tensor) -> Tensor:
    return z.reshape(1) if z.ndim == 0 else z


def _squares(values: Tensor) -> Tensor:
    return values.square().sum(dtype=torch.float64)


def projection_of(subject: MeasuredModel, outputs: Tensor, generator: torch.Generator) -> Tensor:
    """∂φ/∂f. Where gradients are reduced over ranks before they are seen, these must weigh every output alike: ω itself,
    without this rank's own unit."""
    direction = draw_projection(outputs, generator)
    return direction if subject.sharding is None else direction / projection_scale(outputs)


def scale_of(subject: MeasuredModel, outputs: Tensor) -> float:
    """What makes squares under `projection_of` those under ω (`Estimator.draw`)."""
    return projection_scale(outputs) ** -2 if subject.sharding is None else 1.0
