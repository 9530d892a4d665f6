"""Tests of what is said of a folder that a command names, before anything heavy is imported."""

import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from grpo_hf.durability.output_folder import claim_output_folder
from grpo_hf.errors import ConfigError, OutputExistsError
from grpo_hf.run_folders import recipe_at, run_at_work

# Another process that trains in a folder, as far as others can see.
TRAINS = """
import fcntl, json, os, socket, sys
file = open(sys.argv[1] + "/.run", "a+")
fcntl.flock(file, fcntl.LOCK_EX)
json.dump({"process": os.getpid(), "machine": socket.gethostname()}, file)
file.flush()
print(os.getpid(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """Yield the folder of a run that another process trains, and the id of the process."""
    run = tmp_path / "mine"
    run.mkdir()
    (run / "recipe.yaml").write_text("max_steps: 40\nsave_steps: 20.0\n")
    (run / "metrics.jsonl").write_text('{"step": 7}\n{"step": 8, "loss": 1}\n{"step": 9, "lo')
    command = [sys.executable, "-c", TRAINS, str(run)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout and child.stdin
        yield run, int(child.stdout.readline())
        child.stdin.close()


def test_a_folder_in_which_a_run_trains_is_not_to_be_removed(other):
    run, process = other
    # Also where this run would go on there.
    for resume in (None, "auto"):
        with pytest.raises(OutputExistsError) as caught:
            claim_output_folder(run, resume=resume)
        assert f"a run is training there (process {process}, step 8 of 40)" in str(caught.value)
        assert "remove" not in str(caught.value)


@pytest.mark.parametrize("command", [["chat"], ["eval"], ["export"]])
def test_a_run_without_weights_yet_says_when_it_saves(refused, other, command):
    run, process = other
    said = refused(*command, run)
    assert f"training there now (process {process}, step 8 of 40), and has saved nothing" in said
    assert "Its first checkpoint comes at step 20 (save_steps)." in said and "SIGTERM" in said
    (run / "recipe.yaml").write_text("max_steps: 40\n")
    assert "It saves at its end, step 40 (save_steps is 500)." in refused(*command, run)


def test_a_run_that_has_logged_nothing_yet_is_one(refused, other):
    run, process = other
    (run / "metrics.jsonl").unlink()
    said = refused("report", run)
    assert f"training there now (process {process}, step 0 of 40), and has logged no step" in said


def test_a_run_that_has_ended_without_weights(refused, other):
    run, _ = other
    (run / ".run").unlink()
    assert "its run has ended at step 8 and saved nothing." in refused("chat", run)


def test_a_run_of_this_process_is_no_other(tmp_path):
    with (tmp_path / ".run").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        json.dump({"process": os.getpid(), "machine": socket.gethostname()}, file)
        file.flush()
        assert run_at_work(tmp_path) is None


MISSING = [
    ["chat"], ["eval"], ["report"], ["credit"], ["export"], ["replay"], ["plot", "x.png"],
    ["push", "me/mine", "--dry_run"],
]  # fmt: skip


@pytest.mark.parametrize("command", MISSING, ids=lambda command: command[0])
def test_a_missing_run_is_described_in_one_way(refused, tmp_path, command):
    (tmp_path / "mine").mkdir()
    name, *more = command
    assert refused(name, tmp_path / "mime", *more) == (
        f"error: {tmp_path}/mime: no such folder. Did you mean '{tmp_path}/mine'? Expected the "
        "output folder of a run.\n"
    )


def test_mistakes_in_names_import_nothing_heavy(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "adapter_config.json").touch()
    program = f"""
import sys
from grpo_hf.cli import main
for command in (
    ["train", "no.yaml"], ["plan", "no.yaml"], ["rewards", "check", "no.yaml"], ["chat", "no"],
    ["eval", "no"], ["export", "no"], ["report", "no"], ["push", "no", "me/no"], ["trian"],
    ["export", "{tmp_path}/there", "--to", "{tmp_path}"], ["init", "{tmp_path}/there"], [],
):
    try:
        main(command)
    except SystemExit as left:
        assert left.code == 2, command
    heavy = {{"torch", "transformers", "trl", "datasets", "peft"}} & set(sys.modules)
    assert not heavy, (command, heavy)
"""
    (tmp_path / "there" / "recipe.yaml").touch()
    subprocess.run([sys.executable, "-c", program], check=True)


class TestRecipes:
    def test_the_folder_that_init_made(self, tmp_path):
        (tmp_path / "recipe.yaml").touch()
        assert recipe_at(tmp_path) == tmp_path / "recipe.yaml"

    def test_a_folder_without_one(self, tmp_path):
        (tmp_path / "other.yaml").touch()
        with pytest.raises(ConfigError, match=r"without recipe.yaml.*holds other.yaml"):
            recipe_at(tmp_path)

    def test_the_folder_of_a_run_is_not_trained_by_mistake(self, refused, tmp_path):
        (tmp_path / "recipe.yaml").touch()
        (tmp_path / "metrics.jsonl").touch()
        said = refused("train", tmp_path)
        assert "is the output folder of a run. To go on" in said and "auto" in said
