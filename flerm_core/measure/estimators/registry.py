"""All estimators by name. A new one is registered here, and its name in `records.recording`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from flerm_core.errors import InvalidInput
from flerm_core.measure.estimators.base import Estimator, OutputLayer
from flerm_core.measure.estimators.exact import Exact
from flerm_core.measure.estimators.gradient_moments import Full, Independent, Kronecker
from flerm_core.measure.estimators.per_example import PerExample
from flerm_core.measure.measured_model import MeasuredModel

ESTIMATORS: Mapping[str, type[Estimator]] = MappingProxyType(
    {each.name: each for each in (PerExample, Kronecker, Independent, Full, Exact)}
)


def make_estimator(
    name: str, model: MeasuredModel, *, output_weight: str = "", output_bias: str = ""
) -> Estimator:
    """The estimator called `name`, for `model`.

    `output_weight` and `output_bias` name the tensors of the output layer ("": none is named).
    Raises `InvalidInput` for an unknown name, and where the estimator cannot use what is named.
    """
    if name not in ESTIMATORS:
        raise InvalidInput(f"estimator={name!r} is not known; there are: {', '.join(ESTIMATORS)}")
    return ESTIMATORS[name](model, OutputLayer(output_weight, output_bias))
