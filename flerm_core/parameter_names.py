"""Canonical names of parameters, and which numbers in a name count blocks.

A *path* is a name split at its dots. A *template* is a name in which `*` stands for the block
numbers of one or more axes (`layers.*.attn.q.weight`). A *depth group* is a template that stands
for several tensors of one model; its FSLR is that of their joint change.

An *axis* is a path that ends in `*` (`layers.*`, `encoder.layers.*`, `stages.*.blocks.*`). The
number of a block may also end a component: the axis of `encoder_layer_3` is `encoder_layer_*`. An
axis matches a name at the first place where all its components follow each other, so `layers.*`
also counts the blocks of `model.layers.3.mlp.weight`. An axis that begins with the component `*`,
for a model that is itself a `torch.nn.Sequential`, matches only at the beginning of a name.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import combinations

from flerm_core.errors import InvalidInput

_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_ADAPTER = "default"
_NUMBERED = re.compile(r"(.*?)(\d+)")
_OF_A_LAYER = ("lora_", "parametrizations")
"""Modules that adapters and parametrizations put into a layer, whose names begin so."""

Path = tuple[str, ...]
Shapes = Sequence[Sequence[int]]
Kinds = set[tuple[int, ...]]
"""The shapes of the tensors of one name."""


def canonical(name: str) -> str:
    """`name` as the unwrapped model has it.

    The components that DDP, FSDP, torch.compile and checkpointing add are removed. PEFT's leading
    `base_model.model.` is removed too, and so is its adapter name `default`
    (`lora_A.default.weight`). A name that consists of wrappers only stays as it is.
    """
    path = [part for part in name.split(".") if part not in _WRAPPERS]
    while path[:2] == ["base_model", "model"] and len(path) > 2:
        path = path[2:]
    kept: list[str] = []
    for part in path:
        if not (part == _ADAPTER and kept and kept[-1].startswith("lora_")):
            kept.append(part)
    return ".".join(kept) or name


def canonical_names(names: Iterable[str]) -> list[str]:
    """The canonical form of each of `names`, in order.

    Raises `InvalidInput` when two of them become one.
    """
    origin: dict[str, str] = {}
    for name in names:
        short = canonical(name)
        if short in origin:
            raise InvalidInput(
                f"names: {origin[short]!r} and {name!r} both mean {short!r}; each parameter needs "
                "a name of its own"
            )
        origin[short] = name
    return list(origin)


def is_depth_group(name: str) -> bool:
    """Whether `name` is the template of a depth group: one of its components ends in `*`."""
    return "*" in name and any(part.endswith("*") for part in name.split("."))


def starred(name: str) -> str:
    """`name` with a star for each number that is a component."""
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def widest_template(name: str) -> str:
    """`name` with a star for each number that ends a component.

    Those names that one template may stand for have one widest template.
    """
    return ".".join(_star(part) for part in name.split("."))


@lru_cache(maxsize=4096)
def _star(part: str) -> str:
    """`part` with a star for the number that it ends in."""
    numbered = _NUMBERED.fullmatch(part)
    return f"{numbered[1]}*" if numbered else part


def _number(part: str) -> int:
    """The number that `part` ends in."""
    return int(part[len(_star(part)) - 1 :])


def _is_numbered(part: str) -> bool:
    return _star(part) != part


def as_axes(blocks: str | Iterable[str] | None) -> tuple[str, ...]:
    """Block axes as a tuple.

    Raises `InvalidInput` for one that has empty components, or whose last component does not end in
    its only `*`.
    """
    axes = (blocks,) if isinstance(blocks, str) else tuple(blocks or ())
    for axis in axes:
        path = axis.split(".")
        if path[-1].find("*") != len(path[-1]) - 1 or not all(path):
            raise InvalidInput(
                f"blocks: {axis!r} is not an axis; an axis is a dotted path that ends in '*', "
                "such as 'layers.*'"
            )
    return axes


class _AxisNode(dict[str, "_AxisNode"]):
    """The axes or templates that begin with one path, by their next component.

    axis: the one that ends here, or empty.
    """

    axis = ""


@lru_cache(maxsize=16)
def _axis_tree(axes: tuple[str, ...]) -> _AxisNode:
    """Many axes as a tree, so that a name is compared with few of them."""
    root = _AxisNode()
    for axis in axes:
        node = root
        for part in axis.split("."):
            node = node.setdefault(part, _AxisNode())
        node.axis = axis
    return root


def _below(node: _AxisNode, part: str, *, first: bool, begins: bool) -> Iterator[_AxisNode]:
    """The nodes below `node` that `part` of a name fits.

    first: `part` is the first of the name.
    begins: it is the first that is compared. An axis that begins with a star fits the beginning of
        a name only.
    """
    for key in {part, _star(part)}:
        if key in node and (key != "*" or first or not begins):
            yield node[key]


def split_name(name: str, axes: Sequence[str]) -> tuple[str, tuple[int, ...]]:
    """The template of `name` along `axes` and its block numbers, one for each `*` of the template.

    `split_name("layers.3.attn.q.weight", ["layers.*"]) == ("layers.*.attn.q.weight", (3,))`. A name
    that no axis matches is its own template and has no numbers. The same holds for a depth group.
    """
    path = name.split(".")
    tree = _axis_tree(tuple(axes))
    star_at: dict[str, int] = {}  # each axis that fits, and where its star stands first
    for start in range(len(path)):
        nodes = [tree]
        for at in range(start, len(path)):
            nodes = [
                below
                for node in nodes
                for below in _below(node, path[at], first=at == 0, begins=at == start)
            ]
            if not nodes:
                break
            for node in nodes:
                if node.axis:
                    star_at.setdefault(node.axis, at)
    places = sorted(place for place in set(star_at.values()) if _is_numbered(path[place]))
    numbers = tuple(_number(path[place]) for place in places)
    for place in places:
        path[place] = _star(path[place])
    return ".".join(path), numbers


def stands_for(template: str, name: str) -> bool:
    """Whether `name` is `template` with a number (or a `*`) for each `*`."""
    return _fits(template.split("."), name.split("."))


def _fits(pattern: Sequence[str], path: Sequence[str]) -> bool:
    return len(pattern) == len(path) and all(
        want in (part, _star(part)) for want, part in zip(pattern, path, strict=True)
    )


def expand(template: str, names: Iterable[str]) -> list[str]:
    """The tensors among `names` that belong to the depth group `template`, in their order."""
    return expand_all([template], names)[template]


def expand_all(templates: Iterable[str], names: Iterable[str]) -> dict[str, list[str]]:
    """The tensors among `names` of each of the depth groups `templates`, in their order."""
    found: dict[str, list[str]] = {template: [] for template in templates}
    tree = _axis_tree(tuple(found))
    for name in names:
        if is_depth_group(name):
            continue
        nodes = [tree]
        for part in name.split("."):
            nodes = [
                below for node in nodes for below in _below(node, part, first=True, begins=False)
            ]
        for node in nodes:
            if node.axis:
                found[node.axis].append(name)
    return found


def find_axes(base: Iterable[str], target: Iterable[str]) -> tuple[str, ...]:
    """The block axes along which two models of a family differ, sorted.

    An axis is a place in the names at which both models have numbers, but not equally many. Where
    both have equally many, the numbers are ordinary parts of names: `0.weight` and `2.weight` of
    two `torch.nn.Sequential` of one length correspond by name. A number that ends a component
    counts where `_are_parts` says so in both models. Nested axes (`stages.*.blocks.*`) are found
    too. Depth groups among the names are ignored.
    """
    found: set[str] = set()
    _compare((), _paths(base), _paths(target), found)
    return tuple(sorted(found))


def _paths(names: Iterable[str]) -> set[Path]:
    return {tuple(name.split(".")) for name in names if not is_depth_group(name)}


def _compare(prefix: Path, base: set[Path], target: set[Path], found: set[str]) -> None:
    left, right = _children(base), _children(target)
    others = _by_star(right)
    for star, parts in _by_star(left).items():
        its = others.get(star, [])
        counted = _are_parts(prefix, parts, left) and _are_parts(prefix, its, right)
        if len(parts) == len(its) or not counted:
            continue
        axis = (*prefix, star)
        found.add(".".join(axis))
        _compare(axis, _joined(left, parts), _joined(right, its), found)
        left = {part: tails for part, tails in left.items() if part not in parts}
    for part in left.keys() & right.keys():
        _compare((*prefix, part), left[part], right[part], found)


def _children(paths: Iterable[Path]) -> dict[str, set[Path]]:
    children: dict[str, set[Path]] = defaultdict(set)
    for path in paths:
        if path:
            children[path[0]].add(path[1:])
    return children


def _joined(children: Mapping[str, set[Path]], parts: Iterable[str]) -> set[Path]:
    return {tail for part in parts for tail in children[part]}


def _by_star(parts: Iterable[str]) -> dict[str, list[str]]:
    """Those of `parts` that end in a number, by what they are with a star for it."""
    found: dict[str, list[str]] = {}
    for part in parts:
        if _is_numbered(part):
            found.setdefault(_star(part), []).append(part)
    return found


def _are_parts(prefix: Path, numbered: list[str], children: Mapping[str, Iterable[Path]]) -> bool:
    """Whether the numbers of `numbered`, components of equal stem below `prefix`, may count blocks.

    children: what stands below `prefix`, by component.

    A component that is a number may. A number that ends a component (`encoder_layer_3`) often tells
    two layers of a block apart (`ln_1`, `fc2`, `attn1`). It may count blocks under three
    conditions:

    1. The numbers run from 0 or 1 without a gap.
    2. Each component holds modules, not only tensors.
    3. Nothing else stands beside the components, or no number stands before them in the name.
    """
    if not numbered or _star(numbered[0]) == "*":
        return bool(numbered)
    numbers = sorted(map(_number, numbered))
    return (
        numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        and numbers[0] < 2
        and all(_holds_modules(children[part]) for part in numbered)
        and (len(numbered) == len(children) or not any(map(_is_block, prefix)))
    )


def _is_block(part: str) -> bool:
    return _is_numbered(part) or part.endswith("*")


def _holds_modules(tails: Iterable[Path]) -> bool:
    return any(len(tail) > 1 and not tail[0].startswith(_OF_A_LAYER) for tail in tails)


def block_axes(names: Sequence[str], shapes: Shapes) -> tuple[str, ...]:
    """The block axes of one model, sorted. A recording finds its depth groups along them.

    Numbers at one place of the names count blocks when three conditions hold:

    1. There are two or more numbers.
    2. They run from 0 without a gap.
    3. Tensors of equal name in different blocks have equal shapes. Where the blocks are single
       layers or tensors (`blocks.0.weight`), all such tensors must agree. Where the blocks hold
       modules themselves, one name that agrees is enough, because the first block of a
       convolutional stage may differ from the rest.

    So the layers of a plain MLP in a `torch.nn.Sequential` are not blocks. Numbers that end a
    component (`encoder_layer_3`) may run from 1, must hold modules, and all tensors must agree; the
    number must not tell layers of one block apart (`_are_parts`). Nested axes are found too. Depth
    groups among the names are ignored.
    """
    shape_of = {
        tuple(name.split(".")): tuple(shape)
        for name, shape in zip(names, shapes, strict=True)
        if not is_depth_group(name)
    }
    found: set[str] = set()
    _count((), {path: {shape} for path, shape in shape_of.items()}, found)
    return tuple(sorted(found))


def _count(prefix: Path, shapes: dict[Path, Kinds], found: set[str]) -> None:
    children: dict[str, dict[Path, Kinds]] = defaultdict(dict)
    for path, kinds in shapes.items():
        if path:
            children[path[0]][path[1:]] = kinds
    blocks = {
        star: parts
        for star, parts in _by_star(children).items()
        if _are_parts(prefix, parts, children)
        and _are_blocks([children[part] for part in parts], parts)
    }
    for star, parts in blocks.items():
        joined: dict[Path, Kinds] = defaultdict(set)
        for part in parts:
            for tail, kinds in children.pop(part).items():
                joined[tail] |= kinds
        found.add(".".join((*prefix, star)))
        _count((*prefix, star), joined, found)
    for part, below in children.items():
        _count((*prefix, part), below, found)


def _are_blocks(blocks: list[dict[Path, Kinds]], parts: list[str]) -> bool:
    bare = parts[0].isdecimal()
    if len(parts) < 2 or (bare and set(map(_number, parts)) != set(range(len(parts)))):
        return False
    kinds: dict[Path, list[Kinds]] = defaultdict(list)
    for block in blocks:
        for tail, shapes in block.items():
            kinds[tail].append(shapes)
    shared = [
        all(shapes == found[0] for shapes in found) for found in kinds.values() if len(found) > 1
    ]
    modules_of_modules = any(len(tail) > 1 for tail in kinds)
    return any(shared) if bare and modules_of_modules else bool(shared) and all(shared)


def depth_groups(names: Iterable[str], axes: Sequence[str]) -> dict[str, list[str]]:
    """The depth groups among `names`: template to its tensors, both in the order of `names`.

    Names with numbers along several axes (experts within layers) have one group for each choice
    among the axes, because another model may differ on any of them. A group of a single tensor is
    left out: its joint change is that tensor's own.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if not is_depth_group(name):
            for template in _templates(name, split_name(name, axes)[0]):
                groups[template].append(name)
    return {template: members for template, members in groups.items() if len(members) > 1}


def _templates(name: str, widest: str) -> Iterator[str]:
    """The templates of `name` that have one or more of the stars of `widest`.

    widest: the template of `name` along all axes.
    """
    pairs = list(zip(name.split("."), widest.split("."), strict=True))
    stars = [at for at, (part, wide) in enumerate(pairs) if part != wide]
    for count in range(len(stars), 0, -1):
        for chosen in combinations(stars, count):
            yield ".".join(wide if at in chosen else part for at, (part, wide) in enumerate(pairs))
