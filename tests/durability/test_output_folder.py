"""Tests of the check that an output folder belongs to one run."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest
from accelerate import Accelerator
from support.processes import SCRIPTS, started, written_in

from grpo_hf.durability.output_folder import claim_output_folder
from grpo_hf.errors import OutputExistsError
from grpo_hf.run_files import RUN_FILE
from grpo_hf.runs.output_checks import checkpoint_to_resume
from grpo_hf.runs.recipe import read_recipe

TRACES = ["metrics.jsonl", "adapter_config.json", "model.safetensors", "checkpoint-500"]


def test_a_folder_with_a_run_says_how_its_settings_differ(tmp_path: Path):
    folder = tmp_path / "run"
    flags = ["--output_dir", str(folder), "--rewards", "gsm8k", "--use_cpu", "--report_to", "none"]
    made = read_recipe([*flags, "--max_steps", "2"])
    made.save(folder)
    (folder / RUN_FILE).write_text("{}")
    with pytest.raises(OutputExistsError) as same:
        checkpoint_to_resume(made)
    said = str(same.value)
    assert said.startswith(f"{folder} holds a run already, which is not overwritten.")
    assert "begin it anew there with --resume_from_checkpoint auto" in said
    assert said.endswith("It is the run of these same settings.")
    with pytest.raises(OutputExistsError, match="other settings: max_steps is 3 and was 2"):
        checkpoint_to_resume(read_recipe([*flags, "--max_steps", "3"]))


@pytest.mark.parametrize("name", ["run", "run[1]", "run*", "a?b", "checkpoint-7"])
@pytest.mark.parametrize("trace", TRACES)
def test_a_folder_with_another_run_is_refused_and_left_alone(tmp_path: Path, name: str, trace: str):
    folder = tmp_path / name
    (folder / trace).mkdir(parents=True)
    with pytest.raises(
        OutputExistsError, match=rf"{re.escape(str(folder))} holds a run already \({trace}\)"
    ) as caught:
        claim_output_folder(folder)
    way = (
        "--resume_from_checkpoint auto"
        if trace.startswith("checkpoint") or not trace.startswith("model")
        else "It has no checkpoint: remove or rename it"
    )
    assert "--output_dir" in str(caught.value) and way in str(caught.value)
    assert [path.name for path in folder.iterdir()] == [trace]


@pytest.mark.parametrize("name", ["new", "deep/er", "run[1]", "run*"])
def test_a_free_folder_is_made_and_stays_empty(tmp_path: Path, name: str):
    claim_output_folder(tmp_path / name)
    (lock,) = (tmp_path / name).iterdir()
    assert lock.name == RUN_FILE and not lock.read_bytes()
    # A program may make sure of its folder as often as it likes.
    claim_output_folder(tmp_path / name)


def test_files_that_are_no_run_are_kept(tmp_path: Path):
    for name in ("notes.txt", "recipe.yaml", "my-checkpoint-notes"):
        (tmp_path / name).touch()
    claim_output_folder(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3 + 1  # and the lock


def test_neighbours_that_a_pattern_would_match_do_not_count(tmp_path: Path):
    """Check that `run[1]` is not read as a pattern, which would match `run1`."""
    (tmp_path / "run1").mkdir()
    (tmp_path / "run1" / "metrics.jsonl").touch()
    claim_output_folder(tmp_path / "run[1]")


def test_a_file_in_the_way_is_an_error(tmp_path: Path):
    (tmp_path / "run").touch()
    for folder in (tmp_path / "run", tmp_path / "run" / "below"):
        with pytest.raises(OutputExistsError, match=r"cannot be written to .*--output_dir"):
            claim_output_folder(folder)


@pytest.mark.long
@pytest.mark.parametrize("was_there", [True, False])
def test_a_program_that_never_begins_leaves_nothing(tmp_path: Path, was_there: bool):
    folder = tmp_path / "run"
    if was_there:
        folder.mkdir()
    program = (
        "import sys; from pathlib import Path; from grpo_hf.durability.output_folder import "
        "claim_output_folder; claim_output_folder(Path(sys.argv[1])); sys.exit(2)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(folder)])
    assert done.returncode == 2
    assert [path.name for path in tmp_path.rglob("*")] == (["run"] if was_there else [])


def test_every_process_looks_before_any_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Check that a slow process does not take files of the first process for another run."""

    def first_process_goes_on() -> None:
        assert not (tmp_path / "run").exists()
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "metrics.jsonl").touch()

    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(accelerator, "wait_for_everyone", first_process_goes_on)
    claim_output_folder(tmp_path / "run", accelerator)


@contextmanager
def holder(folder: Path, *how: str) -> Iterator[ForkServerProcess]:
    """A process that holds a folder, in a group of its own, until the end of a `with` block."""
    with TemporaryDirectory() as outputs:
        (process,) = started(1, Path(outputs), folder, *how, script=SCRIPTS / "hold_folder.py")
        try:
            while "held" not in written_in(Path(outputs)):
                assert process.is_alive(), written_in(Path(outputs))
                time.sleep(0.02)
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.join()


@pytest.mark.long
@pytest.mark.parametrize("stage", ["prepares", "begins"])
def test_a_folder_belongs_to_a_run_from_its_first_moment(tmp_path: Path, stage: str):
    folder = tmp_path / "run"
    with holder(folder, stage):
        for resume in (None, "auto"):
            with pytest.raises(OutputExistsError, match="another run writes into") as caught:
                claim_output_folder(folder, resume=resume)
            # Who does what the message says must not end the other run.
            assert "remove" not in str(caught.value)
    # Nothing has to be removed by hand.
    claim_output_folder(folder, resume="auto")


def test_a_second_run_leaves_what_the_first_one_writes_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The first process holds the folder; the others of a program know nothing of that."""
    folder = tmp_path / "run"
    with holder(folder, "begins"):
        (folder / ".unfinished/checkpoint-3").mkdir(parents=True)
        for rank, wish in (("0", "auto"), ("0", "true"), ("1", "auto"), ("1", "true")):
            monkeypatch.setenv("RANK", rank)
            training = SimpleNamespace(output_dir=str(folder), resume_from_checkpoint=wish)
            refused = pytest.raises(OutputExistsError, match="another run writes into")
            with refused if rank == "0" else nullcontext():
                assert checkpoint_to_resume(SimpleNamespace(training=training)) == wish
            assert (folder / ".unfinished/checkpoint-3").is_dir()


def test_a_child_does_not_hold_the_folder_of_its_parent(tmp_path: Path):
    """A worker of a data loader lives for seconds after its trainer was killed."""
    folder = tmp_path / "run"
    with holder(folder, "prepares", "forks") as parent:
        with pytest.raises(OutputExistsError, match="another run writes into"):
            claim_output_folder(folder, resume="auto")
        parent.kill()
        parent.join()
        claim_output_folder(folder, resume="auto")
