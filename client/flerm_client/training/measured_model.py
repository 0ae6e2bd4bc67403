"""The model that is measured: its tensors by name, and the function of it that is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.nn.utils.rnn import PackedSequence
from torch.optim import Optimizer

from flerm_client.training.parallelism import find_sharding, refuse_different_replicas
from flerm_core.errors import InvalidInput, Unsupported
from flerm_core.measure.autodiff.module_hooks import named_hookable, takes_hooks
from flerm_core.measure.distributed import fsdp2
from flerm_core.measure.distributed.ranks import MeasurementRanks
from flerm_core.measure.measured_model import MeasuredModel, Output
from flerm_core.parameter_names import block_axes, canonical, depth_groups


def bare_model(model: nn.Module) -> nn.Module:
    """The module inside DDP, torch.compile and Fabric's wrapper.

    A forward through the bare module does not reduce gradients, broadcast buffers or compile.
    """
    *_, bare = _layers(model)
    return bare


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """`model`, and what DDP, torch.compile and Fabric's wrapper have inside, the bare one last."""
    layer: nn.Module | None = model
    while layer is not None:
        yield layer
        is_ddp = isinstance(layer, DistributedDataParallel)
        names = ("module",) if is_ddp else ("_orig_mod", "_forward_module")
        inside = (getattr(layer, name, None) for name in names)
        layer = next((each for each in inside if isinstance(each, nn.Module)), None)


def _with_input_dtype(model: nn.Module, output: Output) -> Output:
    """`output` of a batch in the dtype to which Fabric's wrapper brings its inputs."""
    for layer in _layers(model):
        precision = getattr(getattr(layer, "_strategy", None), "precision", None)
        convert = getattr(precision, "convert_input", None)
        if convert is not None and hasattr(layer, "_forward_module"):
            return partial(_converted, output, convert)
    return output


def _converted(output: Output, convert: Callable[[Any], Any], model: nn.Module, batch: Any) -> Any:
    return output(model, convert(batch))


def make_measured_model(
    model: nn.Module,
    optimizers: Iterable[Optimizer],
    output: Output | None,
    blocks: str | Iterable[str] | None,
    ranks: MeasurementRanks,
) -> MeasuredModel:
    """The model whose tensors `optimizers` step: their canonical names, depth groups and sharding.

    Raises `InvalidInput` when the optimisers step none of its tensors or two names fall together,
    `Unsupported` for complex tensors and where ranks hold different ones.
    """
    bare = bare_model(model)
    fsdp2.reshard(bare)
    parameters = _stepped_parameters(bare, optimizers)
    names, shapes = list(parameters), [tuple(p.shape) for p in parameters.values()]
    if isinstance(blocks, str):
        blocks = (blocks,)
    axes = tuple(blocks) if blocks is not None else block_axes(names, shapes)
    groups = {group: tuple(members) for group, members in depth_groups(names, axes).items()}
    called = _with_input_dtype(model, output or default_output)
    measured = MeasuredModel(
        bare, parameters, called, groups, find_sharding(bare, parameters, ranks)
    )
    if not ranks.all_equal((names, shapes), measured.device):
        raise Unsupported(
            "the ranks hold different parameters: replicas hold the same ones, "
            "and pipeline parallel cannot be measured"
        )
    if measured.sharding is None:
        refuse_different_replicas(parameters, ranks, measured.device)
    return replace(measured, output=on_device(measured.output, measured.device))


def _stepped_parameters(
    model: nn.Module, optimizers: Iterable[Optimizer]
) -> dict[str, nn.Parameter]:
    """The tensors of `model` that `optimizers` step, by canonical name."""
    stepped = {id(p) for each in optimizers for group in each.param_groups for p in group["params"]}
    parameters: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) in stepped:
            if canonical(name) in parameters:
                raise InvalidInput(
                    f"two parameters are called {canonical(name)!r} "
                    "once wrappers' prefixes are taken off"
                )
            parameters[canonical(name)] = parameter
    if not parameters:
        raise InvalidInput(
            "the optimizer steps no parameter of the model: was it built from another model?"
        )
    lazy = next((name for name, p in parameters.items() if is_lazy(p)), None)
    if lazy is not None:
        raise InvalidInput(
            f"{lazy} has no shape yet: call the model once on a batch, as lazy modules need, "
            "before record() or match()"
        )
    empty = next((name for name, p in parameters.items() if p.is_meta), None)
    if empty is not None:
        raise InvalidInput(
            f"{empty} is on the meta device and has no values yet: call record() or match() after "
            "model.to_empty(device=...) and the initialisation"
        )
    complex_name = next((name for name, p in parameters.items() if p.is_complex()), None)
    if complex_name is not None:
        raise Unsupported(
            f"{complex_name} is complex, which has no FSLR yet; "
            "hold it as its real and imaginary parts (view_as_real)"
        )
    return parameters


def modules_that_show_autocast(model: nn.Module, measured: MeasuredModel) -> list[nn.Module]:
    """The modules whose calls show in which autocast region the training's forward runs.

    These are the model, and the first of its layers that is measured: a framework may open the
    region inside the model's forward (accelerate), or not call the model as a whole (Lightning's
    training_step). Modules of torch.jit show nothing.
    """
    own = {id(parameter) for parameter in measured.parameters.values()}
    layers = (
        module
        for _, module in named_hookable(measured.module)
        if any(id(p) in own for p in module.parameters(recurse=False))
    )
    first = next(layers, model)
    shown = [model] if first is model else [model, first]
    return [each for each in shown if takes_hooks(each)]


def default_output(model: nn.Module, batch: Any) -> Any:
    """The model's outputs: `model(batch)`, or `model(**batch)` for a mapping.

    Raises `InvalidInput` for a tuple or list, which does not say how the model is called.
    """
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, tuple | list):
        raise InvalidInput(
            f"a probe batch is a {type(batch).__name__} of {len(batch)}: say how the model is "
            "called, for instance output=lambda model, batch: model(batch[0])"
        )
    return model(batch)


def on_device(
    function: Callable[[nn.Module, Any], Any], device: torch.device
) -> Callable[[nn.Module, Any], Any]:
    """`function(model, batch)` with copies on `device` of the batch's tensors."""

    def moved(model: nn.Module, batch: Any) -> Any:
        return function(model, to_device(batch, device))

    return moved


def to_device(batch: Any, device: torch.device) -> Any:
    """`batch` with copies on `device` of its tensors, also inside tuples, lists and mappings.

    They are copies because a forward may write into its inputs, which the training may have too.
    """
    if isinstance(batch, Tensor):
        # Autograd takes no tensor that was made under `torch.inference_mode`; a copy is none.
        return batch.detach().to(device, copy=True).requires_grad_(batch.requires_grad)
    if isinstance(batch, PackedSequence):  # whose batch sizes torch wants on the host
        data, batch_sizes, *order = batch
        return PackedSequence(to_device(data, device), batch_sizes, *to_device(order, device))
    if isinstance(batch, Mapping):
        moved = {key: to_device(value, device) for key, value in batch.items()}
        return type(batch)(moved)  # type: ignore[call-arg]
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(item, device) for item in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(to_device(item, device) for item in batch)
    return batch
