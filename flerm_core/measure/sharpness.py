"""Sharpness: the top eigenvalue of the Hessian of the training loss, a scalar beside the FSLRs.

By products H·v alone (Lanczos, `scipy.sparse.linalg.eigsh`): one forward and backward that keep their graph, then a backward
through the two of them for each of some 20 products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flerm_core.errors import InvalidInput, MeasurementError
from flerm_core.measure.state_guard import hooks_disabled

Loss = Callable[[nn.Module, Any], Tensor]

TOLERANCE = 1e-3  # relative: single batches differ by more


def top_eigenvalue(loss: Tensor, parameters: Sequence[nn.Parameter], *, seed: int = 0) -> float:
    """The largest (most positive) eigenvalue of ∂²loss/∂W², to a relative 1e-3; unit: that of the loss over that of W².

    NaN where the loss is not finite, or where the iteration does not settle.
    `loss`: a scalar whose graph is twice differentiable; `seed` chooses the vector that the iteration begins from. Raises
    `MeasurementError` for a loss of another shape.
    """
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    if loss.numel() != 1 or not loss.requires_grad:
        raise MeasurementError(
            f"sharpness: the loss has shape {list(loss.shape)}; it must be a scalar that depends on the model"
        )
    moving = [parameter for parameter in parameters if parameter.requires_grad]
    if not moving or not math.isfinite(loss.item()):
        return math.nan
    with hooks_disabled(moving):
        gradients = torch.autograd.grad(
            loss.reshape(()), moving, create_graph=True, materialize_grads=True
        )
        curved = [gradient for gradient in gradients if gradient.requires_grad]

        def product(vector: NDArray[np.float64]) -> NDArray[np.float64]:
            flat = torch.from_numpy(np.ascontiguousarray(vector.reshape(-1)))
            parts = flat.split([parameter.numel() for parameter in moving])
            along = [part.reshape(p.shape).to(p) for part, p in zip(parts, moving, strict=True)]
            directions = [
                v for v, gradient in zip(along, gradients, strict=True) if gradient.requires_grad
            ]
            found = torch.autograd.grad(
                curved, moving, directions, retain_graph=True, materialize_grads=True
            )
            return torch.cat([each.reshape(-1).double().cpu() for each in found]).numpy()

        size = sum(parameter.numel() for parameter in moving)
        if not curved:
            return 0.0
        if size == 1:  # eigsh wants two dimensions
            return float(product(np.ones(1))[0])
        begin = np.random.default_rng(seed).standard_normal(size)
        operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
        try:
            values = eigsh(
                operator, k=1, which="LA", v0=begin, tol=TOLERANCE, return_eigenvectors=False
            )
        except ArpackNoConvergence:
            return math.nan
        return float(values[0])


def differentiable_twice() -> Any:
    """Attention by plain matrix products inside: its fused kernels have no second derivative."""
    return sdpa_kernel(SDPBackend.MATH)


def require_scipy() -> None:
    """Raises `InvalidInput` where scipy is missing: told before training starts."""
    try:
        import scipy.sparse.linalg  # noqa: F401
    except ModuleNotFoundError as error:
        raise InvalidInput(
            "sharpness= needs the package scipy: pip install 'flerm[sharpness]'"
        ) from error
