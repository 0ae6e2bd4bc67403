"""The routes of an OpenAPI document as Markdown, so that they can be read in the repository."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

BEGIN = "<!-- The routes: written by `make openapi` from openapi.json. -->\n"
END = "<!-- End of the routes. -->\n"
WIDTH = 96  # characters of a line of JSON


def with_routes(page: str, document: dict[str, Any]) -> str:
    """`page` with the routes of `document` between the lines `BEGIN` and `END`."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{routes(document)}\n{END}{after}"


def routes(document: dict[str, Any]) -> str:
    """Each route: its sentence, its parameters, its body's fields, an example of its answer."""
    parts = [
        _route(method, path, operation, document["components"]["schemas"])
        for path, methods in sorted(document["paths"].items(), key=_topic)
        for method, operation in methods.items()
    ]
    return "\n".join(parts)


def _topic(item: tuple[str, dict[str, Any]]) -> tuple[int, str]:
    order = ("families", "recordings", "targets", "figures")
    (tag,) = next(iter(item[1].values()))["tags"]
    return order.index(tag), item[0]


def _route(method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    lines = [f"### `{method.upper()} {path}`", "", *operation["description"].split("\n")]
    rows = [
        (
            f"`{each['name']}`",
            _type(each["schema"]),
            _default(each["schema"], required=each["required"]),
            each["description"],
        )
        for each in operation.get("parameters", [])
    ]
    lines += _table("parameter", rows)
    if "requestBody" in operation:
        schema = _resolve(
            operation["requestBody"]["content"]["application/json"]["schema"], schemas
        )
        lines += ["", "The body is JSON."]
        lines += _table("field", list(_fields(schema, schemas)))
        lines += ["", "```json", _json(schema["examples"][0]), "```"]
    lines += ["", "Answer:"]
    for media_type, content in operation["responses"]["200"]["content"].items():
        example = content.get("example")
        if isinstance(example, str):
            lines += ["", f"`{media_type}`", "", "```text", example.rstrip("\n"), "```"]
        elif example is not None:
            lines += ["", "```json", _json(example), "```"]
        else:
            lines += ["", f"`{media_type}`"]
    return "\n".join(lines) + "\n"


def _fields(schema: dict[str, Any], schemas: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    required = schema.get("required", [])
    for name, found in _resolve(schema, schemas)["properties"].items():
        default = _default(found, required=name in required)
        yield f"`{name}`", _type(found), default, found.get("description", "")


def _table(title: str, rows: Sequence[tuple[str, ...]]) -> list[str]:
    if not rows:
        return []
    lines = ["", f"| {title} | type | default | meaning |", "|---|---|---|---|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _resolve(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in schema:
        return schema
    return {**schemas[schema["$ref"].rsplit("/", 1)[-1]], **schema}


def _type(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        kinds = [each for each in schema["anyOf"] if each.get("type") != "null"]
        return " or ".join(map(_type, kinds))
    if "$ref" in schema:
        return str(schema["$ref"].rsplit("/", 1)[-1])
    if "enum" in schema:
        return " or ".join(f"`{each}`" for each in schema["enum"])
    kind = str(schema.get("format", schema.get("type", "any")))
    if kind == "array":
        return f"list of {_type(schema['items'])}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}"
    if "minimum" in schema:
        kind += f", from {schema['minimum']}"
    if "maximum" in schema:
        kind += f" to {schema['maximum']}"
    if "exclusiveMaximum" in schema:
        kind += f", below {schema['exclusiveMaximum']}"
    return kind


def _default(schema: dict[str, Any], *, required: bool) -> str:
    if required:
        return "required"
    default = schema.get("default")
    return "none" if default in (None, "", [], {}) else f"`{default}`"


def _json(value: Any, indent: int = 0) -> str:
    """JSON in which a value stands on one line where it fits."""
    line = json.dumps(value, ensure_ascii=False)
    if len(line) + indent <= WIDTH or not isinstance(value, dict | list):
        return line
    inner = indent + 2
    if isinstance(value, list):
        parts, (first, last) = [_json(each, inner) for each in value], "[]"
    else:
        parts = [f"{json.dumps(key)}: {_json(each, inner)}" for key, each in value.items()]
        first, last = "{}"
    pad = " " * inner
    return f"{first}\n{pad}" + f",\n{pad}".join(parts) + f"\n{' ' * indent}{last}"
