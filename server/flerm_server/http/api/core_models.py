"""Models of REST made from the core's dataclasses, so that no field is written twice."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import Annotated, Any, Self, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, create_model


def number(value: float | None) -> float | None:
    """A float as JSON can carry it: None for what is not finite."""
    return None if value is None or not math.isfinite(value) else value


def plain_lists(value: Any) -> Any:
    """An array, or nested lists, of floats as lists, with None for what is not finite."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [plain_lists(each) if isinstance(each, list) else number(each) for each in value]


Number = Annotated[float | None, BeforeValidator(number)]
"""A float that is null in JSON where it is not finite."""


class CoreModel(BaseModel):
    """A model that is read from the attributes of a core value."""

    model_config = ConfigDict(from_attributes=True, populate_by_name=True)

    @classmethod
    def of(cls, value: Any) -> Self:
        """The model of `value`, a dataclass."""
        # By name here, because pydantic would take `Targets`, which is a Mapping, for its items.
        return cls.model_validate({each.name: getattr(value, each.name) for each in fields(value)})


def fields_of(
    *sources: type,
    without: Collection[str] = (),
    models: Mapping[type, type[BaseModel]] | None = None,
    defaults: bool = False,
) -> type[CoreModel]:
    """A base class with the fields of `sources`, for a model that documents them.

    sources: dataclasses of the core. Of a name that two have, the later one's field counts.
    without: fields to leave out.
    models: the model that stands for each dataclass that is the type of a field.
    defaults: whether fields keep their defaults, as a request's do. An answer has every field.
    """
    made: dict[str, Any] = {}
    for source in sources:
        hints = get_type_hints(source)
        for field in fields(source):
            if field.name not in without:
                default = field.default if defaults else ...
                made[field.name] = (_type_in_json(hints[field.name], models or {}), default)
    return create_model("_".join(each.__name__ for each in sources), __base__=CoreModel, **made)


def _type_in_json(hint: Any, models: Mapping[type, type[BaseModel]]) -> Any:
    """What stands in a model for a dataclass field of type `hint`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in models:
        return models[hint]
    if origin in (Union, UnionType) and set(arguments) == {float, NoneType}:
        return Number
    if origin is tuple:
        return list[_type_in_json(arguments[0], models)]  # type: ignore[misc]
    if origin is Mapping:
        return dict[arguments[0], arguments[1]]  # type: ignore[valid-type]
    return hint
