"""docs/grpc.md has every rpc, message and field of the contract, each with what it is."""

from __future__ import annotations

import runpy
from pathlib import Path

from flerm_proto.v1 import registry_pb2 as pb

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "grpc.md").read_text()


def test_the_reference_is_that_of_the_contract() -> None:
    made = runpy.run_path(str(DOCS / "grpc_reference.py"))["page"]()
    assert made == PAGE, "docs/grpc.md is stale: make proto"


def test_every_rpc_message_and_field_is_there_and_described() -> None:
    made = PAGE
    for method in pb.DESCRIPTOR.services_by_name["Registry"].methods:
        assert f"| `{method.name}` | [{method.input_type.name}]" in made
    for name, message in pb.DESCRIPTOR.message_types_by_name.items():
        section = made.partition(f"### {name}\n")[2].partition("\n### ")[0]
        assert section.strip().split("\n")[0].endswith("."), name
        for field in message.fields:
            row = next(
                line for line in section.split("\n") if line.startswith(f"| `{field.name}` ")
            )
            assert row.removesuffix(" |").endswith("."), (name, field.name)
