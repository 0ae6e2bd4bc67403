"""The `flerm` command: what it prints, and the code it ends with."""

from __future__ import annotations

import csv
import gc
import io
import json
import resource
import subprocess
import sys
import uuid
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import grpc
import numpy as np
import pytest
import typer
from spooled import NAMES, row_of, spec_of, write_run

from flerm_client import RegistryClient
from flerm_client.cli import build, main
from flerm_core import Trajectory
from flerm_core.records.recording import Ending
from flerm_proto.v1 import registry_pb2 as pb
from flerm_proto.v1 import registry_pb2_grpc as rpc
from tests.support.small_disk import small_file_system


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """The user's registry, token and spool are not used."""
    for name in ("FLERM_REGISTRY", "FLERM_TOKEN", "FLERM_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FLERM_SPOOL", str(tmp_path / "spool"))


@pytest.fixture
def sweep(registry, tmp_path, monkeypatch):
    """A family of three recordings, in FLERM_REGISTRY; its name, and the id at lr 0.002."""
    family = f"cli-{uuid.uuid4().hex[:12]}"
    specs = {lr: spec_of(family, lr) for lr in (1e-3, 2e-3, 4e-3)}
    for lr, spec in specs.items():
        loss = 0.5 if lr == 2e-3 else 0.9
        write_run(tmp_path / "sent", spec, [1, 101], ending=Ending(final_loss=loss, final_step=101))
    monkeypatch.setenv("FLERM_REGISTRY", registry.address)
    assert main(["sync", "--spool", str(tmp_path / "sent"), "--json"]) == 0
    return family, specs[2e-3].id


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def answer(capsys, *arguments: str):
    code, out, err = run(capsys, *arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


class Escaping(rpc.RegistryServicer):
    """A registry whose texts have control sequences of terminals."""

    text = "red \x1b[31m \x9b2J \r\x07 \u202e end"

    def ListFamilies(self, request, context):
        return pb.ListFamiliesResponse(families=[pb.Family(name=self.text, description=self.text)])

    def GetBest(self, request, context):
        return pb.Best(family=self.text, advice=self.text, experiment=self.text)

    def GetRecording(self, request, context):
        context.abort(grpc.StatusCode.NOT_FOUND, self.text)


@pytest.mark.parametrize(
    "command",
    [["families"], ["families", "--json"], ["best", "mlp"], ["show", str(uuid.uuid4())]],
)
def test_what_a_registry_says_does_not_steer_the_terminal(capsys, command):
    server = grpc.server(ThreadPoolExecutor(2))
    rpc.add_RegistryServicer_to_server(Escaping(), server)
    address = f"grpc://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        _, out, err = run(capsys, *command, "--registry", address)
    finally:
        server.stop(None)
    assert "red" in out + err and "end" in out + err
    assert all(each.isprintable() or each == "\n" for each in out + err)


def test_tags_names_and_recordings_are_changed_afterwards(sweep, capsys):
    family, recording = sweep
    assert answer(capsys, "tag", recording, "purpose=baseline", "draft=1")["tags"] == {
        "purpose": "baseline",
        "draft": "1",
    }
    code, out, _ = run(capsys, "tag", recording, "--remove", "draft")
    assert (code, out) == (0, f"{recording}: purpose=baseline\n")
    assert answer(capsys, "rename", family, f"{family}-b")["recordings"] == 3
    assert answer(capsys, "delete", recording, "--yes") == {"id": recording, "rows": 2}
    assert len(answer(capsys, "recordings", f"{family}-b")) == 2
    code, _, err = run(capsys, "delete", recording, "--yes")
    assert code == 3 and "is not in this registry" in err


def test_families(sweep, capsys):
    family, _ = sweep
    (found,) = answer(capsys, "families", family)
    assert (found["name"], found["recordings"], found["learning_rates"]) == (
        family,
        3,
        [1e-3, 2e-3, 4e-3],
    )
    code, out, _ = run(capsys, "families", family)
    assert code == 0 and family in out and "0.001, 0.002, 0.004" in out
    assert run(capsys, "families", "no-such-prefix")[1] == "no families yet\n"


def test_listings_are_bounded_and_say_so(sweep, capsys, monkeypatch):
    family, _ = sweep
    for command in (["recordings", family], ["families", family.split("/")[0]]):
        whole = answer(capsys, *command, "--all")
        code, out, said = run(capsys, *command, "--jsonl", "--all")
        assert code == 0
        assert [json.loads(line) for line in out.splitlines()] == whole
        assert not said
        assert answer(capsys, *command, "--limit", str(len(whole))) == whole
    monkeypatch.setattr("flerm_client.cli.common.LISTED", 2)
    _, out, said = run(capsys, "recordings", family, "--jsonl")
    assert len(out.splitlines()) == 2
    assert said == "flerm: these are the first 2; --limit N lists more, --all lists all\n"


def test_a_listing_takes_any_limit(sweep, capsys):
    _, everything, _ = run(capsys, "recordings", sweep[0], "--all")
    assert run(capsys, "recordings", sweep[0], "--limit", str(10**20)) == (0, everything, "")


def test_a_family_of_many_rates_takes_a_line_of_usual_length(start_registry, capsys):
    address = f"grpc://{start_registry().grpc}"
    with RegistryClient(address) as client:
        for at in range(20):
            client.start_recording("search", 1e-3 * (1 + at), ["a"], [(1,)])
    _, out, _ = run(capsys, "families", "-r", address)
    assert "20 from 0.001 to 0.02" in out
    assert len(answer(capsys, "families", "-r", address)[0]["learning_rates"]) == 20


def test_recordings(sweep, capsys):
    family, recording_id = sweep
    assert [each["lr"] for each in answer(capsys, "recordings", family, "--lr-min", "2e-3")] == [
        4e-3,
        2e-3,
    ]
    assert len(answer(capsys, "recordings", family, "--limit", "1")) == 1
    code, out, _ = run(capsys, "recordings", family)
    assert code == 0 and recording_id in out


def test_show(sweep, capsys):
    _, recording_id = sweep
    shown = answer(capsys, "show", recording_id)
    assert (shown["status"], shown["names"]) == ("completed", list(NAMES))
    assert shown["trajectory"][1] == {
        "step": 101,
        "loss": pytest.approx(1 / 101),
        "fslr": [101.0, 202.0, None],
    }
    code, out, _ = run(capsys, "show", recording_id, "--pattern", "*.bias")
    assert code == 0 and "0.bias" in out and "0.weight" not in out


def test_show_reads_a_spool_file(tmp_path, capsys):
    path = write_run(tmp_path, spec_of("mlp"), [1, 2], registry="grpc://h:1")
    shown = answer(capsys, "show", str(path))
    assert (shown["family"], shown["rows"], shown["status"]) == ("mlp", 2, "completed")
    assert "for grpc://h:1" in shown["notes"][0]


def test_show_says_what_the_run_said_at_its_end(tmp_path, capsys):
    ending = Ending(remarks=("2 tensors were clamped: a, b",))
    path = write_run(tmp_path, spec_of("mlp"), [], ending=ending)
    assert answer(capsys, "show", str(path))["remarks"] == list(ending.remarks)
    code, out, _ = run(capsys, "show", str(path))
    assert code == 0 and "2 tensors were clamped: a, b" in out


def test_best(sweep, capsys):
    family, _ = sweep
    assert answer(capsys, "best", family)["lr"] == 2e-3
    code, out, _ = run(capsys, "best", family)
    assert code == 0 and f"{family}: use lr 0.002" in out and "next: lr" in out


def test_best_suggests_what_a_tuner_tries_next(sweep, capsys):
    family, _ = sweep
    assert main(["best", family, "--suggest"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told.keys() == {"rates", "settled", "lr", "why"}
    assert told["settled"] == (not told["rates"])


def test_targets(sweep, capsys):
    family, recording_id = sweep
    found = answer(capsys, "targets", family, "2e-3", "--step", "101")
    assert (found["sources"], found["targets"]["0.weight"]) == ([recording_id], 101.0)
    code, out, _ = run(capsys, "targets", family, "2e-3")
    assert code == 0 and "0.bias" in out


def test_check_compares_a_model_before_money_is_spent(sweep, tmp_path, capsys):
    family, recording_id = sweep
    shapes = [(16, 4), (16,), (3, 16)]
    Trajectory(NAMES, shapes, [1], [[4.0, np.nan, 2.0]]).save(tmp_path / "wide.npz")
    report = answer(capsys, "check", family, str(tmp_path / "wide.npz"), "--lr", "2e-3")
    assert report["multipliers"]["0.weight"] == 0.25
    assert "0.bias" in report["unmeasured"]
    # The same sentences for a user, for a program, and of the family itself.
    of_family = answer(capsys, "best", family)["cautions"]
    assert of_family[0].startswith("The base has one seed") and len(of_family) == 2
    assert set(of_family) < set(report["cautions"])
    assert any(
        each.startswith("The base's recordings do not all say") for each in report["cautions"]
    )
    out = run(capsys, "check", family, str(tmp_path / "wide.npz"), "--lr", "2e-3")[1]
    assert [f"caution: {each}" in out for each in report["cautions"]] == [True] * len(
        report["cautions"]
    )
    wide = ("check", family, str(tmp_path / "wide.npz"), "--lr", "2e-3", "--batch-size", "1024")
    code, _, err = run(capsys, *wide)
    assert code == 2 and "set the tag batch_size of these recordings (flerm tag)" in err
    assert run(capsys, "tag", recording_id, "batch_size=64")[0] == 0
    report = answer(capsys, *wide)
    assert report["multipliers"]["0.weight"] == 2 * 0.25
    assert report["remarks"][0].startswith("batch size 1024 in 101 steps, where the base has 64")
    names = tmp_path / "names.txt"
    names.write_text("\n".join([*NAMES, "head.weight"]))
    code, _, err = run(capsys, "check", family, str(names), "--lr", "2e-3")
    assert code == 3 and "head.weight" in err
    other = write_run(tmp_path, spec_of("mine", optimizer="SGD"), [1])
    code, out, _ = run(capsys, "check", family, str(other), "--lr", "2e-3")
    assert code == 5 and "the model's is SGD, the targets' Adam" in out


def test_export(sweep, tmp_path, capsys):
    _, recording_id = sweep
    for ending in ("npz", "csv", "json"):
        assert run(capsys, "export", recording_id, str(tmp_path / f"out.{ending}"))[0] == 0
    loaded = Trajectory.load(tmp_path / "out.npz")
    np.testing.assert_array_equal(loaded.values, np.stack([row_of(1).values, row_of(101).values]))
    with (tmp_path / "out.csv").open() as opened:
        table = list(csv.reader(opened))
    assert table[0] == ["step", "loss", "learning_rate", "tokens", *NAMES]
    assert table[2][0] == "101" and table[2][4:] == ["101.0", "202.0", ""]
    assert json.loads((tmp_path / "out.json").read_text())["rows"][1]["fslr"] == [
        101.0,
        202.0,
        None,
    ]
    code, _, err = run(capsys, "export", recording_id, "out.xls")
    assert code == 2 and "allowed are .npz, .csv, .json" in err


@pytest.mark.parametrize("ending", ["npz", "csv", "json"])
def test_an_export_to_a_full_disk_leaves_the_file_that_was_there(sweep, tmp_path, capsys, ending):
    with small_file_system(tmp_path / "disk", megabytes=1) as disk:
        file = disk / f"base.{ending}"
        assert run(capsys, "export", sweep[1], str(file))[0] == 0
        before = file.read_bytes()
        with suppress(OSError), (disk / "ballast").open("wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(4096))
        code, _, err = run(capsys, "export", sweep[1], str(file))
        assert code == 2 and f"{file} cannot be written (No space left on device)" in err
        assert file.read_bytes() == before
        assert sorted(each.name for each in disk.iterdir()) == ["ballast", file.name]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_output_is_complete_whatever_the_encoding_of_the_terminal(sweep, monkeypatch, encoding):
    family, recording_id = sweep

    def said(*arguments: str) -> str:
        stream = io.TextIOWrapper(io.BytesIO(), encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(arguments) == 0
        stream.flush()
        return stream.buffer.getvalue().decode(encoding)

    assert "note=" in said("tag", recording_id, "note=größer 💥")
    assert "lr" in said("best", family) and "0.weight" in said("targets", family, "2e-3")
    for listed in (
        json.loads(said("recordings", family, "--json")),
        [json.loads(line) for line in said("recordings", family, "--jsonl").splitlines()],
    ):
        assert "größer 💥" in [each["tags"].get("note") for each in listed]
    said("tag", recording_id, "--remove", "note")


@pytest.mark.parametrize(
    "arguments",
    [
        ("families", "\udcff"),
        ("recordings", "\udcff"),
        ("recordings", "--tag", "a=\udcff"),
        ("show", "\udcff"),
        ("best", "\udcff"),
        ("targets", "\udcff", "1e-2"),
        ("export", "\udcff", "out"),
        ("tag", "\udcff", "a=b"),
        ("tag", str(uuid.UUID(int=7)), "a=\udcff"),
        ("rename", "\udcff", "mlp"),
        ("delete", "\udcff", "--yes"),
        ("check", "mlp", "{names}", "--lr", "1e-2"),
    ],
    ids=str,
)
def test_arguments_and_files_that_are_no_text_are_refused(
    registry, tmp_path, monkeypatch, capsys, arguments
):
    monkeypatch.chdir(tmp_path)
    names = tmp_path / "names.txt"
    names.write_bytes(b"\xff\xfe")
    arguments = [each.format(names=names) for each in arguments]
    code, out, err = run(capsys, *arguments, "-r", registry.address)
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [names]


def test_a_token_file_that_is_no_text_is_refused(registry, tmp_path, monkeypatch, capsys):
    file = tmp_path / "token"
    file.write_bytes(b"\xff\xfe")
    monkeypatch.setenv("FLERM_TOKEN_FILE", str(file))
    code, _, err = run(capsys, "families", "-r", registry.address)
    assert code == 2 and "token: only printable ASCII characters are allowed" in err


def test_doctor(sweep, capsys, tmp_path):
    found = {each["what"]: each["state"] for each in answer(capsys, "doctor")}
    assert (found["network"], found["server"]) == ("ok", "ok")
    code, out, _ = run(capsys, "doctor", "--registry", "grpc://127.0.0.1:1")
    assert code == 1 and "does not accept connections" in out
    code, out, _ = run(capsys, "doctor", "--registry", "localhost")
    assert code == 1 and "'localhost' is no address" in out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["families", "--bogus"], 2, "--bogus"),
        (["nonsense"], 2, "nonsense"),
        (["show"], 2, "(see flerm show --help)"),
        (["db", "prune"], 2, "(see flerm db prune --help)"),
        (["families"], 2, "FLERM_REGISTRY"),
        (["families", "-r", "http://x"], 2, "'http://x'"),
        (
            ["recordings", "--tag", "a=1", "--tag", "a=2", "-r", "grpc://127.0.0.1:1"],
            2,
            "--tag: 'a=2' beside 'a=1'",
        ),
        (["recordings", "--tag", "x", "-r", "grpc://127.0.0.1:1"], 2, "key=value"),
        (["show", "nowhere.spool"], 3, "nowhere.spool"),
        (["families", "-r", "grpc://127.0.0.1:1"], 4, "grpc://127.0.0.1:1 cannot be reached"),
    ],
)
def test_errors_are_one_line_on_standard_error_and_an_exit_code(capsys, arguments, code, says):
    ended, out, err = run(capsys, *arguments)
    assert (ended, out) == (code, "")
    assert err.startswith("flerm: ") and says in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("address", "code"), [("{registry}", 0), ("grpc://127.0.0.1:1", 4)], ids=["here", "nowhere"]
)
def test_a_command_without_streams_ends_with_its_code(registry, monkeypatch, address, code):
    """As one that a daemon with closed descriptors starts."""
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, None)
    for form in ("--json", "--jsonl", "--all"):
        assert main(["families", form, "-r", address.format(registry=registry.address)]) == code


def test_what_the_registry_does_not_know_ends_with_3(sweep, capsys):
    for arguments in (
        ["best", "no-such-family"],
        ["targets", sweep[0], "0.5"],
        ["show", str(uuid.UUID(int=7))],
    ):
        code, _, err = run(capsys, *arguments)
        assert code == 3 and err.count("\n") == 1


def test_two_optimisers_end_with_5(sweep, tmp_path, capsys):
    family, _ = sweep
    write_run(tmp_path / "more", spec_of(family, 2e-3, optimizer="SGD"), [1])
    assert run(capsys, "sync", "--spool", str(tmp_path / "more"))[0] == 0
    code, _, err = run(capsys, "targets", family, "2e-3")
    assert code == 5 and "optimizer" in err


def commands(group, *above: str):
    """All commands with the words that lead to them."""
    for name, command in group.commands.items():
        yield from (
            commands(command, *above, name)
            if hasattr(command, "commands")
            else [((*above, name), command)]
        )


def test_every_command_explains_itself_with_an_example():
    found = dict(commands(typer.main.get_command(build())))
    assert {
        ("families",),
        ("import-ptnorms",),
        ("serve",),
        ("db", "backup"),
        ("token", "create"),
    } <= set(found)
    for words, command in found.items():
        assert f"Example: flerm {' '.join(words)}" in " ".join(command.help.split()), (
            f"{words} has no example"
        )


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        (["serve"], "structlog", "server"),
        (["import-ptnorms", "f", "some.ptnorms", "--lr", "1"], "torch", "train"),
    ],
)
def test_a_command_whose_packages_are_not_installed_says_what_to_install(
    command, package, extra, monkeypatch, capsys
):
    for module in [
        name
        for name in sys.modules
        if name.startswith(("flerm_server", "flerm_experiments.paper_recordings"))
    ]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(command) == 1
    assert (
        capsys.readouterr().err
        == f"flerm: flerm {command[0]} needs the package {package}: pip install 'flerm[{extra}]'\n"
    )


def test_help_lists_the_commands_and_nothing_else(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        code, out, err = run(capsys, "--help")
    assert (
        code == 0
        and err == ""
        and all(f"\n  {name} " in out for name in ("families", "best", "sync", "train", "serve"))
    )


@pytest.mark.parametrize("arguments", [(), ("db",), ("token",)], ids=str)
def test_a_command_without_arguments_shows_its_help_as_it_stands(capsys, arguments):
    _, help_text, _ = run(capsys, *arguments, "--help")
    code, out, err = run(capsys, *arguments)
    assert code in (0, 2) and (out + err).strip() == help_text.strip()
    assert help_text.count("\n") > 5


def test_a_brief_command_leaves_the_garbage_collector_as_it_was(capsys):
    assert gc.isenabled()
    assert run(capsys, "families", "-r", "grpc://127.0.0.1:1")[0] == 4
    assert gc.isenabled()


def processor_seconds(*arguments: str) -> float:
    """Of a new interpreter with these arguments."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, timeout=30)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_a_listing_takes_little_more_than_the_imports_no_command_can_do_without(sweep, registry):
    # Processor time beside a floor of the same moment, because wall time, and how fast a processor
    # is, depend on what else the machine does. typer loads pydantic's types where a command has
    # options. The floor was 330 ms where the bound was set.
    listing = ("-m", "flerm_client.cli", "families", "--json", "-r", registry.address)
    needed = "import typer, numpy, grpc, google.protobuf.struct_pb2"
    floor = ("-c", f"{needed}; from pydantic import Field, TypeAdapter")
    pairs = [(processor_seconds(*listing), processor_seconds(*floor)) for _ in range(3)]
    taken, least = (min(each) for each in zip(*pairs, strict=True))
    assert taken <= 1.75 * least
