"""The pages without a browser: each renders, and gives the answers that REST and gRPC give."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from datetime import datetime

import gallery
import httpx
import numpy as np
import pytest

from flerm_client import RegistryClient
from flerm_client.cli import main
from flerm_core.errors import FlermError
from flerm_core.records.recording import Ending
from tests.server.conftest import Backend, serve
from tests.server.samples import PARAMETERS, batch, family, rows, spec


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    yield from serve(f"sqlite:///{tmp_path_factory.mktemp('pages')}/registry.db")


@pytest.fixture(scope="module")
def ids(backend: Backend) -> dict[str, str]:
    """The recordings of a sweep in the family `team/decoder`, by what they are."""
    return gallery.sweep(backend.local)


@pytest.fixture
def http(backend: Backend) -> Iterator[httpx.Client]:
    url = f"http://{backend.server.http_address.text}"
    with httpx.Client(base_url=url, headers={"Accept": "text/html"}, timeout=20) as client:
        yield client


def page(http: httpx.Client, path: str, **query: str) -> str:
    """The text of a page that must be there."""
    answer = http.get(path, params=query)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/html")
    return answer.text


def test_a_family_shows_the_rate_its_coverage_and_its_recordings(
    http: httpx.Client, ids: dict[str, str]
):
    text = page(http, "/families/team/decoder")
    assert "Use 0.0038" in text
    assert "seed 0" in text
    assert f"/recordings/{ids['base']}" in text


def test_the_index_shows_what_each_family_came_to(http: httpx.Client, ids: dict[str, str]):
    text = html.unescape(page(http, "/"))
    row = text[text.index('href="/families/team/decoder"') :].partition("</tr>")[0]
    report = http.get("/api/v1/families/team/decoder/transfer").json()
    matched = next(each for each in report["rows"] if each["variant"] == "matched")
    assert "lowest at 0.004" in row
    assert f">{report['best']['optimum']:.3g}<" in row
    assert f"<b>{matched['shift']:+.2f}</b>".replace("-", "−") in row
    assert "width ×4, matched" in row
    recordings = http.get("/api/v1/recordings", params={"family": "team/decoder"}).json()
    newest = max(each["updated_at"] for each in recordings["recordings"])
    assert datetime.fromisoformat(re.findall('datetime="([^"]*)"', row)[0]) == (
        datetime.fromisoformat(newest)
    )


def test_every_other_page_renders(http: httpx.Client, ids: dict[str, str]):
    assert "team/decoder" in page(http, "/")
    assert "Function-space learning rates" in page(http, f"/recordings/{ids['base']}")
    assert "FSLR over target" in page(http, "/compare", ids=f"{ids['base']},{ids['plain']}")
    assert "No recording is selected yet" in page(http, "/compare")
    match = {"family": "team/decoder", "lr": "0.004", "recording": ids["plain"]}
    assert "Or set the rates by hand" in page(http, "/match", **match)
    assert "openapi.json" in page(http, "/docs")


def test_digests_are_out_of_sight_and_runs_are_sorted_by_their_steps(
    backend: Backend, http: httpx.Client
):
    name = family()
    found = [
        gallery.record(
            backend.local,
            name,
            lr=1e-3,
            loss=1.0,
            seed=seed,
            steps=np.arange(1, last, 100),
            config={"width": 8 + seed, "parameters": 128256128256 + seed},
            tags={"job": f"7f19c34b2fbd72cfc1573608129546f{seed}"},
        )
        for seed, last in enumerate((302, 102, 202))
    ]
    text = page(http, "/compare", ids=",".join(found[:2]))
    assert ">width<" in text
    assert "128256128256" in text
    text += page(http, f"/families/{name}") + page(http, "/match", family=name)
    assert "7f19c34b2fbd" not in text
    for sort, expected in (("ran", (1, 2, 0)), ("-rows", (0, 2, 1))):
        text = page(http, f"/families/{name}", sort=sort)
        table = text[text.index('<table class="recordings">') :]
        assert re.findall('href="/recordings/([^"]*)"', table)[:3] == [found[at] for at in expected]


def test_a_recording_shows_what_the_run_said_at_its_end(backend: Backend, http: httpx.Client):
    said = "this run has measured nothing: <no step> was made"
    with RegistryClient(f"grpc://{backend.server.grpc_address.text}") as registry:
        recording = registry.start_recording(family(), 1e-3, ["a"], [[2]])
        registry.finish(recording, remarks=[said])
    text = page(http, f"/recordings/{recording}")
    assert "What the run said at its end" in text
    assert html.escape(said) in text
    assert http.get(f"/api/v1/recordings/{recording}").json()["remarks"] == [said]


def test_a_page_rest_and_grpc_give_one_best_rate(
    backend: Backend, http: httpx.Client, ids: dict[str, str]
):
    rest = http.get("/api/v1/families/team/decoder/best").json()
    with RegistryClient(f"grpc://{backend.server.grpc_address.text}") as registry:
        best = registry.best("team/decoder")
    assert (best.lr, best.next_lr, best.advice) == (rest["lr"], rest["next_lr"], rest["advice"])
    text = html.unescape(page(http, "/families/team/decoder"))
    assert rest["advice"] in text
    report = http.get("/api/v1/families/team/decoder/transfer").json()
    assert report["best"] == rest
    (line, *_) = http.get("/api/v1/families/team/decoder/figure").json()["layout"]["shapes"]
    assert line["x0"] == pytest.approx(best.optimum, rel=1e-4)
    unknown = http.get("/api/v1/families/team/decoder/figure?scale=heads")
    assert unknown.status_code == 404
    assert "scale: 'heads' is no setting in which models differ" in unknown.json()["detail"]


@pytest.mark.parametrize("optimizers", [("Adam",), ("Adam", "SGD")])
def test_why_there_is_no_best_rate_is_one_sentence_everywhere(
    backend: Backend, http: httpx.Client, optimizers: tuple[str, ...]
):
    name = family()
    for optimizer in optimizers:
        backend.local.start(spec(name, optimizer=optimizer))
    rest = http.get(f"/api/v1/families/{name}/best")
    assert rest.status_code == 404
    with (
        RegistryClient(f"grpc://{backend.server.grpc_address.text}") as registry,
        pytest.raises(FlermError) as refused,
    ):
        registry.best(name)
    assert rest.json()["detail"] in str(refused.value)
    text = html.unescape(page(http, f"/families/{name}"))
    assert rest.json()["detail"] in text
    assert ("pick its setting, such as optimizer=" in text) is (len(optimizers) > 1)


def test_of_several_optimisers_page_rest_grpc_and_command_name_the_same_one(
    backend: Backend, http: httpx.Client, capsys: pytest.CaptureFixture[str]
):
    name, address = family(), f"grpc://{backend.server.grpc_address.text}"
    for lr in (1e-3, 2e-3, 4e-3):
        gallery.record(backend.local, name, lr=lr, loss=1 + abs(lr - 2e-3))
    for lr in (0.1, 0.2):
        sent = spec(name, lr=lr, optimizer="SGD", optimizer_config={})
        backend.local.start(sent)
        backend.local.finish(sent.id, 0, Ending(final_loss=lr))
    rest = http.get(f"/api/v1/families/{name}/best").json()
    assert rest["lr"] == 2e-3
    assert "optimizer=SGD (2 recordings)" in rest["experiment"]
    with RegistryClient(address) as registry:
        best = registry.best(name)
        assert (best.lr, best.experiment) == (rest["lr"], rest["experiment"])
        picked = registry.best(name, pick={"optimizer": "SGD"})
    assert html.unescape(page(http, f"/families/{name}")).count(rest["experiment"]) == 1
    assert main(["best", name, "--registry", address]) == 0
    assert rest["experiment"] in capsys.readouterr().out
    assert main(["best", name, "--pick", "optimizer=SGD", "--registry", address]) == 0
    assert "best recorded: 0.1, loss 0.1" in capsys.readouterr().out
    asked = {"pick": "optimizer=SGD"}
    assert http.get(f"/api/v1/families/{name}/best", params=asked).json()["lr"] == picked.lr == 0.1
    text = page(http, f"/families/{name}", **asked)
    assert f'href="/api/v1/families/{name}/best?pick=optimizer%3DSGD"' in text
    answer = http.get(f"/api/v1/families/{name}/best", params={"pick": "optimizer=Lion"})
    assert (answer.status_code, "there is Adam, SGD" in answer.json()["detail"]) == (404, True)


@pytest.mark.parametrize(
    ("pick", "says"),
    [
        ("optimizer=Lion", "pick: optimizer='Lion' fits no base recording"),
        ("steps=300", "pick: 'steps' is no setting of these recordings"),
    ],
)
def test_a_pick_that_nothing_fits_is_refused_by_every_answer_about_it(
    backend: Backend, http: httpx.Client, pick: str, says: str
):
    name = family()
    for optimizer, lr in (("Adam", 1e-3), ("Adam", 2e-3), ("SGD", 0.1)):
        sent = spec(name, lr=lr, optimizer=optimizer, optimizer_config={})
        backend.local.start(sent)
        backend.local.finish(sent.id, 0, Ending(final_loss=lr))
    for route in ("best", "transfer", "figure"):
        answer = http.get(f"/api/v1/families/{name}/{route}", params={"pick": pick})
        assert (answer.status_code, says in answer.json()["detail"]) == (404, True), route
    # The form of the page sends all settings: it shows what there is, and links to that.
    text = html.unescape(page(http, f"/families/{name}", pick=pick))
    shown = "pick=optimizer%3DAdam" if pick.startswith("optimizer") else ""
    for route in ("best", "transfer"):
        assert f'href="/api/v1/families/{name}/{route}?{shown}"' in text


def test_two_values_of_one_key_are_refused(backend: Backend, http: httpx.Client):
    name = family()
    backend.local.start(spec(name))
    for path in (
        "/api/v1/recordings?tag=a=1&tag=a=2",
        f"/api/v1/families/{name}/best?pick=steps=1&pick=steps=2",
    ):
        answer = http.get(path)
        assert answer.status_code == 422, path
        assert "only one value of a key is allowed" in answer.json()["detail"]
    assert http.get("/api/v1/recordings?tag=a=1&tag=a=1").status_code == 200


def test_the_matcher_takes_a_recording_of_the_big_model(
    backend: Backend, http: httpx.Client, ids: dict[str, str]
):
    text = page(http, "/match", family="team/decoder")
    label = html.unescape(text.partition(f'value="{ids["plain"]}">')[2].partition("<")[0])
    assert label == f"plain, lr 0.016, seed 3, {ids['plain'][:8]}"
    big = backend.local.trajectory(ids["plain"])
    asked = {
        "family": "team/decoder",
        "lr": 0.004,
        "names": list(big.names),
        "shapes": list(map(list, big.shapes)),
        "measured": dict(big.at()),
        "step": 1,
    }
    found = http.post("/api/v1/match", json=asked).json()
    text = page(http, "/match", family="team/decoder", lr="0.004", recording=ids["plain"])
    for name in big.names:
        row = text[text.index(f'class="name">{name}<') :].partition("</tr>")[0]
        assert f">{found['learning_rates'][name]:.4g}<" in row, name
    wrong = {"family": "team/decoder", "recording": ids["plain"], "tensors": "embed.weight"}
    answer = http.get("/match", params=wrong)
    assert (answer.status_code, "choose none, or clear the text" in answer.text) == (422, True)


def test_the_matcher_offers_every_optimiser_and_shows_the_one_with_most_recordings(
    backend: Backend, http: httpx.Client
):
    name = family()
    for lr, loss in ((1e-3, 2.0), (2e-3, 1.0), (4e-3, 2.0)):
        gallery.record(backend.local, name, lr=lr, loss=loss)
    for lr in (0.1, 0.2):
        sent = spec(name, lr=lr, optimizer="SGD", optimizer_config={}, parameters=PARAMETERS)
        backend.local.start(sent)
        backend.local.append_many([batch(sent.id, *rows(1, 101))])
        backend.local.finish(sent.id, 0, Ending(final_loss=lr))
    text = html.unescape(page(http, "/match", family=name))
    assert "tensors at 0.002" in text
    assert "There are others: SGD" in text
    assert "lr=0.002," in text
    (other,) = re.findall(r'<option value="(SGD[^"]*)">', text)
    text = html.unescape(page(http, "/match", family=name, base=other))
    assert "3 tensors at 0.1<" in text
    asked = {"family": name, "lr": 0.1, "optimizer": "SGD"}
    found = http.get("/api/v1/targets", params=asked).json()
    assert f">{found['values'][0][0]:.4g}<" in text
    answer = http.get("/match", params={"family": name, "base": "Lion"})
    assert answer.status_code == 404
    assert "fits no completed base recording" in answer.text


def test_the_matcher_follows_a_batch_size_where_the_base_has_one(
    backend: Backend, http: httpx.Client
):
    name, measured = family(), "embed.weight 40"
    settings = {"config": {"batch_size": 64}, "optimizer_config": {"betas": [0.9, 0.99]}}
    gallery.record(backend.local, name, lr=0.004, loss=1.0, **settings)
    other = gallery.record(
        backend.local, name, lr=0.004, role="scaled", config={"batch_size": 128, "width": 64}
    )
    text = html.unescape(page(http, "/match", family=name, tensors=measured))
    assert 'name="batch_size"' in text and "blank: the base's, 64" in text
    assert 'name="total_steps"' in text and "blank: the base's, 2001" in text
    cautions = http.get(f"/api/v1/families/{name}/transfer").json()["cautions"]
    assert [each[:21] for each in cautions] == ["The base has one seed", "The runs of this fami"]
    best = http.get(f"/api/v1/families/{name}/best", params={"cautions": "true"}).json()
    assert best["cautions"] == cautions
    pages = page(http, f"/families/{name}"), page(http, "/match", family=name, tensors=measured)
    for shown in map(html.unescape, pages):
        assert all(each in shown for each in cautions)
    text = html.unescape(page(http, "/match", family=name, recording=other))
    assert "has 128 examples and a step of the base 64: betas and rates do not follow; with" in text
    following = {"batch_size": "256", "total_steps": "1000"}
    text = html.unescape(page(http, "/match", family=name, tensors=measured, **following))
    asked = {"family": name, "lr": 0.004, "measured": {"embed.weight": 40.0}}
    asked |= {"batch_size": 256, "total_steps": 1000}
    found = http.post("/api/v1/match", json=asked).json()
    row = text[text.index('class="name">embed.weight') :].partition("</tr>")[0]
    assert f">{found['learning_rates']['embed.weight']:.4g}<" in row
    assert found["remarks"][-1].removeprefix("b") + "." in text  # which begins "Batch size 256"
    assert text.count("    batch_size=256,\n    total_steps=1000,\n    registry=") == 2
    assert "    betas=(0.81, 0.9801),\n" in text
    for wrong, said in (
        ({"batch_size": "many"}, "batch_size: 'many' is no batch size; a whole number such as 256"),
        ({"batch_size": "0"}, "batch_size: 0 is not allowed; it must be an integer from 1"),
        ({"total_steps": "9"}, "total_steps: 9 goes with a batch size; give both"),
    ):
        answer = http.get("/match", params={"family": name, **wrong})
        assert (answer.status_code, said in html.unescape(answer.text)) == (422, True)
    assert 'name="batch_size"' not in page(http, "/match", family="team/decoder")


@pytest.mark.parametrize("step", ["", "301"])
def test_the_matcher_and_rest_give_one_learning_rate(
    http: httpx.Client, ids: dict[str, str], step: str
):
    measured = {"embed.weight": 40.0, "readout.weight": 10.0}
    asked = {"family": "team/decoder", "lr": 0.004, "measured": measured}
    found = http.post("/api/v1/match", json=asked | ({"step": int(step)} if step else {})).json()
    tensors = "\n".join(f"{name} {value}" for name, value in measured.items())
    text = page(http, "/match", family="team/decoder", lr="0.004", tensors=tensors, step=step)
    for name in measured:
        row = text[text.index(f'class="name">{name}') :].partition("</tr>")[0]
        for key in ("targets", "multipliers", "learning_rates"):
            assert f">{found[key][name]:.4g}<" in row, (name, key)
