"""Sharpness: the largest eigenvalue of the Hessian of the training loss, measured beside FSLRs.

1. One forward and backward of the loss keep their graph.
2. The Lanczos method (`scipy.sparse.linalg.eigsh`) needs products H·v only, some 20 of them.
3. Each product is a backward pass through the graph of step 1, because H·v = ∂⟨∂loss/∂W, v⟩/∂W.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flerm_core.errors import InvalidInput, MeasurementError
from flerm_core.measure.state_guard import hooks_disabled

Loss = Callable[[nn.Module, Any], Tensor]

TOLERANCE = 1e-3  # relative; the sharpness of two batches differs by more


def top_eigenvalue(loss: Tensor, parameters: Sequence[nn.Parameter], *, seed: int = 0) -> float:
    """The largest (most positive) eigenvalue of ∂²loss/∂W², in units of the loss over those of W².

    loss: a scalar whose graph can be differentiated twice.
    parameters: W. Those that are frozen are left out.
    seed: chooses the vector from which the iteration starts.

    Accurate to a relative 1e-3. NaN where the loss is not finite, where all parameters are frozen,
    or where the iteration does not converge. Raises `MeasurementError` where the loss is no scalar
    or does not depend on the model.
    """
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    if loss.numel() != 1 or not loss.requires_grad:
        raise MeasurementError(
            f"sharpness: the loss has shape {list(loss.shape)}; it must be a scalar that depends "
            "on the model"
        )
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained or not math.isfinite(loss.item()):
        return math.nan
    with hooks_disabled(trained):
        gradients = torch.autograd.grad(
            loss.reshape(()), trained, create_graph=True, materialize_grads=True
        )
        if not any(gradient.requires_grad for gradient in gradients):  # the loss is linear in W
            return 0.0

        def product(vector: NDArray[np.float64]) -> NDArray[np.float64]:
            return _hessian_product(gradients, trained, vector)

        size = sum(parameter.numel() for parameter in trained)
        if size == 1:  # eigsh needs at least two dimensions
            return float(product(np.ones(1))[0])
        start = np.random.default_rng(seed).standard_normal(size)
        operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
        try:
            values = eigsh(
                operator, k=1, which="LA", v0=start, tol=TOLERANCE, return_eigenvectors=False
            )
        except ArpackNoConvergence:
            return math.nan
        return float(values[0])


def _hessian_product(
    gradients: Sequence[Tensor], parameters: Sequence[nn.Parameter], vector: NDArray[np.float64]
) -> NDArray[np.float64]:
    """H·v, flat like `vector`.

    gradients: ∂loss/∂W with their graph.
    """
    flat = torch.from_numpy(np.ascontiguousarray(vector.reshape(-1)))
    parts = flat.split([parameter.numel() for parameter in parameters])
    directions = [part.reshape(p.shape).to(p) for part, p in zip(parts, parameters, strict=True)]
    # A gradient without a graph does not depend on W, and adds nothing.
    curved = [
        (gradient, direction)
        for gradient, direction in zip(gradients, directions, strict=True)
        if gradient.requires_grad
    ]
    found = torch.autograd.grad(
        [gradient for gradient, _ in curved],
        parameters,
        [direction for _, direction in curved],
        retain_graph=True,
        materialize_grads=True,
    )
    return torch.cat([each.reshape(-1).double().cpu() for each in found]).numpy()


def differentiable_twice() -> AbstractContextManager[None]:
    """Inside, attention runs by plain matrix products: fused kernels have no second derivative."""
    return sdpa_kernel(SDPBackend.MATH)


def require_scipy() -> None:
    """Raises `InvalidInput` where scipy is not installed. Called before training starts."""
    try:
        import scipy.sparse.linalg  # noqa: F401
    except ModuleNotFoundError as error:
        raise InvalidInput(
            "sharpness= needs the package scipy: pip install 'flerm[sharpness]'"
        ) from error
