"""A sweep file with a command: what it says, and one sentence for each mistake."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import jsonschema_rs
import pytest

from flerm_core.errors import InvalidInput
from flerm_experiments.sweep.command_file import FIELDS, RUN
from flerm_experiments.sweep.spec import parse
from flerm_experiments.sweep.trials import Trial, job_of

FILE = """
command = "torchrun --nproc-per-node 2 train.py --lr {lr} --width {width} --seed {seed} {size}.txt"
family = "team/gpt"
initial_lr = 0.01
seeds = 2
[base]
width = 64
size = "small model"
[target]
width = 512
size = "big"
"""


def sweep(text: str = FILE):
    return parse(tomllib.loads(text), "mine", Path("/here"))


def test_a_command_is_split_without_a_shell_and_told_by_its_environment() -> None:
    job = job_of(sweep(), Trial(None, 1, 3), "grpc://head")
    assert job.words == (
        *("torchrun", "--nproc-per-node", "2", "train.py", "--lr", "0.02", "--width", "64"),
        *("--seed", "3", "small model.txt"),
    )
    said = job.environment()
    assert {name: said[name] for name in ("FLERM_MODE", "FLERM_FAMILY", "FLERM_ROLE")} == {
        "FLERM_MODE": "record",
        "FLERM_FAMILY": "team/gpt",
        "FLERM_ROLE": "base",
    }
    assert (said["FLERM_LR"], said["FLERM_SEED"]) == ("0.02", "3")
    assert said["FLERM_REGISTRY"] == "grpc://head"
    assert said["FLERM_CONFIG"] == '{"width": 64, "size": "small model"}'
    assert job.folder.parent == Path("/here/flerm-runs/mine")


def test_the_target_is_trained_plain_and_matched_to_the_base_of_this_sweep() -> None:
    plain, matched = sweep().cells
    assert [plain.label, matched.label] == [
        "width 512, size big, plain",
        "width 512, size big, matched",
    ]
    said = job_of(sweep(), Trial(matched, 0, 0), None).environment()
    base = job_of(sweep(), Trial(None, 0, 0), None)
    assert said["FLERM_MODE"] == "match"
    assert said["FLERM_SOURCE_TAGS"] == f"sweep={base.tags['sweep']}"
    assert said["FLERM_VARIANT"] == "matched"
    assert "--width" in base.words and base.tags["job"] != said["FLERM_TAGS"]


def test_the_base_is_shared_by_sweeps_of_other_targets_and_not_of_other_commands() -> None:
    def key(text: str) -> str:
        return job_of(sweep(text), Trial(None, 0, 0), None).tags["job"]

    assert key(FILE.replace("512", "1024")) == key(FILE)
    assert key(FILE.replace("train.py", "train.py --warmup 10")) != key(FILE)
    assert key(FILE.replace("= 64", "= 96")) != key(FILE)


def test_rates_are_listed_or_searched_within_bounds() -> None:
    listed = sweep(FILE.replace("initial_lr = 0.01", "rates = [0.001, 0.003, 0.01]"))
    assert [listed.lr_at(at) for at in listed.allowed_indices] == [0.001, 0.003, 0.01]
    assert [listed.index_of(rate) for rate in (0.003, 0.02)] == [1, None]
    bounded = sweep(FILE.replace("0.01", "0.01\nlr_min = 0.0025\nlr_max = 0.03"))
    assert bounded.allowed_indices == range(-2, 2)


def test_further_cells_take_what_they_leave_open_from_the_base() -> None:
    more = sweep(FILE + '[[cell]]\nwidth = 128\nvariants = ["matched"]\nseeds = 1\n')
    cell = more.cells[-1]
    assert (cell.label, cell.seeds) == ("width 128, matched", 1)
    assert cell.scale.width == 2.0


def test_braces_of_the_command_itself_are_doubled() -> None:
    text = FILE.replace("{size}.txt", "'{{a: {size}}}'")
    assert job_of(sweep(text), Trial(None, 0, 0), None).words[-1] == "{a: small model}"


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("{lr}", "1", r"command has no \{lr\}, but every run must get its learning rate"),
        ("{seed}", "1", r"command has no \{seed\}, but there are several seeds"),
        (
            "{width}",
            "1",
            r"command has no \{width\}, but base and target, or the search, give it a value",
        ),
        ("{size}", "{siez}", r"command has \{siez\}, which is no placeholder; allowed are \{lr\}"),
        ("--lr", "'--lr", r"which cannot be split: No closing quotation"),
        ("width = 512\n", "", r"target has size, but it must have those of base: width, size"),
        ('512\nsize = "big"', '64\nsize = "small model"', r"target equals base"),
        ("= 64", "= true", r"base.width is True, but it must be a number or a text"),
        ("initial_lr = 0.01\n", "", r"initial_lr: sweep 'mine' does not say it"),
        ("= 0.01", "= -0.01", r"initial_lr is -0.01, but it must be a learning rate"),
        ("= 0.01", "= 0.01\nlr_max = 0.001", r"initial_lr is 0.01, but it must lie from lr_min"),
        ("initial_lr = 0.01", "rates = [0.1, 0.01]", r"rates is .*, but it must ascend"),
        ("= 0.01", "= 0.01\nrates = [0.1]", r"initial_lr belongs to the search"),
        ("seeds = 2", "seeds = 0", r"seeds is 0, but it must be a whole number of at least 1"),
        ("seeds = 2", "steps = 2", r"steps is not a field of a sweep with a command; allowed are"),
        ("seeds = 2", 'variants = ["mup"]', r"variants is \['mup'\], but .* plain, matched"),
        ("[base]", '[run]\ntime_limit = "soon"\n[base]', r"run.time_limit is 'soon'"),
        ("[base]", "[run]\ngpu = 1\n[base]", r"run.gpu is not a field .* allowed are cpus, gpus"),
        ("[base]", '[objective]\nline = "loss"\n[base]', r"with 0 groups, but it must have one"),
        ("[base]", '[objective]\nfile = "a"\n[base]', r"either line, or file and key"),
        (
            "[base]",
            '[objective]\nfile = "out.json"\nkey = "loss"\n[base]',
            r"objective.file is 'out.json' without \{folder\}, so that all runs would",
        ),
        ("[base]", '[objective]\nline = "("\n[base]', r"must be a regular expression"),
        ("[base]\n", "[base]\nlr = 1\n", r"base.lr cannot be a key"),
        ("[base]", "[search]\ntrials = 3\n[base]", r"search is .* a table of what is tuned"),
        ("[base]", "[search]\nwidth = [1, 2]\n[base]", r"search.width has a value in base and"),
        ("[base]", "[search]\nlr = [1, 2]\n[base]", r"search.lr cannot be a key"),
        ("[base]", "[search]\nb = [1, 1]\n[base]", r"search.b is \[1, 1\], .* two values"),
        (
            "[base]",
            "[search]\nb = 0.1\n[base]",
            r"search.b is 0.1, but it must be a list of values",
        ),
        ("[base]", "[search]\nb = {low = 2, high = 1}\n[base]", r"low must be below high"),
        ("[base]", "[search]\nb = {low = 0, high = 1, log = true}\n[base]", r"must be above 0"),
        ("[base]", '[search]\nb = {low = 0, high = "1"}\n[base]', r"search.b.high is '1'"),
        ("[base]", "[search]\nb = [true, 2]\n[base]", r"search.b is True, but it must be a number"),
        ("[base]", "[search]\nb = [1, 2]\ntrials = 0\n[base]", r"search.trials is 0"),
        ("[base]", "[search]\nb = [1, 2]\n[base]", r"command has no \{b\}, but .* the search"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(old: str, new: str, sentence: str) -> None:
    assert old in FILE
    with pytest.raises(InvalidInput, match=sentence):
        sweep(FILE.replace(old, new, 1))


def test_the_published_schema_has_the_fields_of_the_reader_and_accepts_its_files() -> None:
    schema = json.loads((Path(__file__).parents[3] / "docs/sweep.schema.json").read_text())
    assert schema["properties"].keys() == set(FIELDS)
    for table, allowed in (("run", RUN), ("objective", ("line", "file", "key"))):
        assert schema["properties"][table]["properties"].keys() == set(allowed)
    is_valid = jsonschema_rs.validator_for(schema).is_valid
    whole = FILE + '[[cell]]\nwidth = 128\n[run]\ntime_limit = "2h"\n[objective]\nline = "(.*)"\n'
    assert is_valid(tomllib.loads(FILE))
    assert is_valid(tomllib.loads(whole))
    space = "[search]\ntrials = 9\nwarmup = [0, 10]\ndecay = {low = 0.1, high = 1, log = true}\n"
    assert is_valid(tomllib.loads(FILE + space))
    assert not is_valid(tomllib.loads(FILE + "[search]\nwarmup = [1]\n"))
    assert not is_valid(tomllib.loads(FILE.replace("{lr}", "1")))
