"""What all `flerm` commands have in common: exit codes, errors, encodings, help and speed."""

from __future__ import annotations

import gc
import io
import json
import resource
import subprocess
import sys
import uuid
import warnings
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import typer
from command_line import run
from spooled import spec_of, write_run

from flerm_client.cli import build, main
from flerm_proto.v1 import registry_pb2 as pb
from flerm_proto.v1 import registry_pb2_grpc as rpc

pytestmark = pytest.mark.usefixtures("environment")


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
