"""Which modules answer for a tensor: those whose derivatives together see each use of it once."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.nn.utils.parametrize import is_parametrized


class ParameterOwners:
    """The modules to observe in a probe's forward, each with the tensors that it answers for.

    At first the owners of a tensor are the modules that hold it. The owner of a parametrization's
    tensor is the module whose weight is computed from the tensor. A tied tensor has several owners,
    and its effect is the sum over its uses in all of them. `promote` moves a tensor to the parents
    of its owners. That is needed where the tensor is used outside its owners (a weight that is read
    without a call of its module).

    `owners` maps a module to {the tensor's path in the module: the tensor's name}. `promoted` holds
    the tensors that were moved.
    """

    def __init__(self, model: nn.Module, tensors: Mapping[str, nn.Parameter]) -> None:
        names = {id(parameter): name for name, parameter in tensors.items()}
        self._parents: dict[nn.Module, list[tuple[nn.Module, str]]] = {}
        self.owners: dict[nn.Module, dict[str, str]] = {}
        self.promoted: set[str] = set()
        inside_parametrizations: set[nn.Module] = set()
        for module in model.modules():
            for child_name, child in module.named_children():
                self._parents.setdefault(child, []).append((module, child_name))
            if module in inside_parametrizations:
                continue
            prefixes = {"": module}
            if is_parametrized(module):
                parts = module.get_submodule("parametrizations").named_modules(
                    prefix="parametrizations"
                )
                prefixes |= {f"{path}.": part for path, part in parts}
                inside_parametrizations.update(prefixes.values())
            held = {
                f"{prefix}{path}": names[id(p)]
                for prefix, part in prefixes.items()
                for path, p in part._parameters.items()
                if p is not None and id(p) in names
            }
            if held:
                self.owners[module] = held

    def promote(self, tensor: str) -> bool:
        """Moves `tensor` to the parents of its owners.

        Returns False where only the whole model owns the tensor, which has no parent.
        """
        self.promoted.add(tensor)
        moved = False
        additions: list[tuple[nn.Module, dict[str, str]]] = []
        for module, held in self.owners.items():
            paths = [path for path, name in held.items() if name == tensor]
            if not paths or module not in self._parents:
                continue
            for path in paths:
                del held[path]
            for parent, child_name in self._parents[module]:
                additions.append((parent, {f"{child_name}.{path}": tensor for path in paths}))
            moved = True
        for parent, paths_of in additions:
            self.owners.setdefault(parent, {}).update(paths_of)
        self._merge_nested(tensor)
        self.owners = {module: held for module, held in self.owners.items() if held}
        return moved

    def _merge_nested(self, tensor: str) -> None:
        """Where one owner of `tensor` is inside another, moves the tensor to the outer one.

        The outer owner's derivative sees the uses in the inner one too, so they would count twice.
        """
        holders = [module for module, held in self.owners.items() if tensor in held.values()]
        for outer in holders:
            inside = set(outer.modules()) - {outer}
            for inner in holders:
                if inner not in inside:
                    continue
                paths = [path for path, name in self.owners[inner].items() if name == tensor]
                prefixes = [path for path, module in outer.named_modules() if module is inner]
                for path in paths:
                    del self.owners[inner][path]
                    self.owners[outer].update({f"{prefix}.{path}": tensor for prefix in prefixes})
