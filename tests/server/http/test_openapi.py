"""The REST contract: the kept document is current, its examples are valid, and no input that it
allows breaks the server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from flerm_core.records.validation import RESERVED
from flerm_server.http.api import examples, schemas
from flerm_server.http.openapi import as_text, document
from flerm_server.http.rest_reference import with_routes
from tests.conftest import RegistryProcess, launch_registry

DOCS = Path(__file__).parents[3] / "docs"
KEPT, REFERENCE = DOCS / "openapi.json", DOCS / "rest.md"
CONTRACT = schemathesis.openapi.from_dict(json.loads(KEPT.read_text()))
FOUND_IN_EVERY_ANSWER = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
)


def test_the_kept_document_and_the_reference_are_this_versions():
    made = document()
    assert as_text(made) == KEPT.read_text(), (
        "REST changed: look at the difference, then `make openapi`"
    )
    page = REFERENCE.read_text()
    assert with_routes(page, made) == page, "docs/rest.md is stale: `make openapi`"
    for path in made["paths"]:
        assert path in page


def test_no_family_within_a_team_can_have_the_name_of_a_route():
    prefix = "/api/v1/families/{name}/"
    names = [path.removeprefix(prefix) for path in document()["paths"] if path.startswith(prefix)]
    assert {"best", "transfer"} <= set(names)
    assert set(names) <= set(RESERVED)


def test_every_parameter_is_described():
    for path, methods in document()["paths"].items():
        for operation in methods.values():
            for parameter in operation.get("parameters", []):
                assert parameter.get("description"), (path, parameter["name"])


def test_every_route_has_an_example_of_its_answer_and_of_what_it_is_asked():
    for path, methods in document()["paths"].items():
        for operation in methods.values():
            answers = operation["responses"]["200"]["content"].values()
            assert any("example" in answer for answer in answers), path
            if "requestBody" in operation:
                assert "examples" in json.dumps(operation["requestBody"]), path
            for parameter in operation.get("parameters", []):
                assert (
                    parameter["in"] != "path"
                    or "examples" in parameter["schema"]
                    or "examples" in parameter
                ), path


@pytest.mark.parametrize(
    ("model", "value"),
    [
        (schemas.FamilyOut, examples.FAMILY_VALUE),
        (schemas.RecordingOut, examples.RECORDING_VALUE),
        (schemas.BestOut, examples.BEST_VALUE),
        (schemas.TargetsOut, examples.TARGETS_VALUE),
        (schemas.TargetsRequest, examples.TARGETS_REQUEST),
        (schemas.MatchRequest, examples.MATCH_REQUEST),
        (schemas.MatchOut, examples.MATCH_VALUE),
        (schemas.FigureOut, examples.FIGURE_VALUE),
    ],
)
def test_examples_are_of_their_models(model, value):
    missing = {name for name, field in model.model_fields.items() if field.is_required()} - set(
        value
    )
    assert not missing
    assert (
        model.model_validate(value).model_dump(mode="json", exclude_unset=True).keys()
        == value.keys()
    )


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    """A registry that holds what the examples speak of."""
    from flerm_core.records.recording import Ending
    from flerm_server.store.sql.store import open_store
    from tests.server.samples import batch, rows, spec

    folder = tmp_path_factory.mktemp("contract")
    registry = launch_registry(f"sqlite:///{folder}/registry.db", folder / "announce.json")
    store = open_store(registry.db)
    sent = spec(examples.NAME, id=examples.ID, lr=0.004)
    store.start(sent)
    store.append_many([batch(sent.id, *rows(1, 101, 201))])
    store.finish(sent.id, 0, Ending(final_loss=0.5))
    store.close()
    yield registry
    assert registry.stop() == 0, "".join(registry.output)


@CONTRACT.parametrize()
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
def test_no_input_breaks_it(case: schemathesis.Case, filled: RegistryProcess):
    answer = case.call(base_url=filled.http, timeout=20)
    case.validate_response(answer, checks=FOUND_IN_EVERY_ANSWER)


def test_a_recording_that_has_ended_is_not_sent_twice(filled: RegistryProcess):
    with httpx.Client(base_url=filled.http) as http:
        for path in ("", "/trajectory", "/trajectory?format=csv", "/figure", "/figure?kind=run"):
            url = f"/api/v1/recordings/{examples.ID}{path}"
            first = http.get(url)
            again = http.get(url, headers={"If-None-Match": first.headers["etag"]})
            assert (first.status_code, again.status_code, again.content) == (200, 304, b""), path
            assert again.headers["etag"] == first.headers["etag"]
        tags = {
            http.get(f"/api/v1/recordings/{examples.ID}/figure?kind={kind}").headers["etag"]
            for kind in ("fslr", "run")
        }
        assert len(tags) == 2


def test_a_recording_that_runs_is_never_kept(filled: RegistryProcess):
    from flerm_server.store.sql.store import open_store
    from tests.server.samples import batch, rows, spec

    store = open_store(filled.db)
    sent = spec("running")
    store.start(sent)
    store.append_many([batch(sent.id, *rows(1))])
    store.close()
    answer = httpx.get(
        f"{filled.http}/api/v1/recordings/{sent.id}/figure", headers={"If-None-Match": "*"}
    )
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    assert "etag" not in answer.headers
