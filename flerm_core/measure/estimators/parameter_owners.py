"""Which module answers for which tensor: the one that holds it, or the nearest ancestor whose own derivative sees every use
of it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn


class Ownership:
    """The modules to watch in a probe's forward, each with the tensors it answers for, by the paths they have inside it.

    A tied tensor has several places and so several owners; its change is the sum over all their uses. `promote` moves a
    tensor one level up wherever a use of it escaped its owner (a weight read behind its module's back).
    """

    def __init__(self, model: nn.Module, tensors: Mapping[str, nn.Parameter]) -> None:
        names = {id(parameter): name for name, parameter in tensors.items()}
        self._parents: dict[nn.Module, list[tuple[nn.Module, str]]] = {}
        for module in model.modules():
            for child_name, child in module.named_children():
                self._parents.setdefault(child, []).append((module, child_name))
        self.owners: dict[nn.Module, dict[str, str]] = {}
        self.promoted: set[str] = set()
        for module in model.modules():
            held = {
                path: names[id(p)]
                for path, p in module._parameters.items()
                if p is not None and id(p) in names
            }
            if held:
                self.owners[module] = held

    def promote(self, tensor: str) -> bool:
        """Hands `tensor` to the parents of its owners. False when only the root is left to ask, and has been asked."""
        self.promoted.add(tensor)
        moved = False
        additions: list[tuple[nn.Module, dict[str, str]]] = []
        for module, held in list(self.owners.items()):
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
        self._drop_nested(tensor)
        self.owners = {module: held for module, held in self.owners.items() if held}
        return moved

    def _drop_nested(self, tensor: str) -> None:
        """Of two owners of one tensor, one inside the other, the outer counts for both: else its uses would count twice."""
        holders = [module for module, held in self.owners.items() if tensor in held.values()]
        for outer in holders:
            inside = set(outer.modules()) - {outer}
            for inner in holders:
                if inner in inside:
                    moved = {path for path, name in self.owners[inner].items() if name == tensor}
                    prefixes = [path for path, module in outer.named_modules() if module is inner]
                    for path in moved:
                        del self.owners[inner][path]
                        self.owners[outer].update(
                            {f"{prefix}.{path}": tensor for prefix in prefixes}
                        )
