"""A disk that fills while a run trains, in logs and in saves; the disk is a real one."""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from peft import LoraConfig
from safetensors import SafetensorError
from support.processes import launch
from transformers import TrainerCallback

from grpo_hf.durability import whole_checkpoints
from grpo_hf.durability.disk import saving
from grpo_hf.errors import SaveError
from grpo_hf.reporting.metrics_file import read_metrics
from grpo_hf.run_files import warn_once

SCRIPT = Path(__file__).parents[1] / "scripts" / "full_disk.py"


def train(model: Path, folder: Path, fills: int, saves: str) -> str:
    """Train on a disk of 8 MiB that is full after a step; return what was written to the output."""
    folder.mkdir()
    said = launch(1, model, folder, fills, saves, script=SCRIPT)
    if "may not mount" in said:
        pytest.skip("this container may not mount")
    return said


@pytest.mark.long
def test_a_full_disk_costs_log_lines_and_no_run(tiny_checkpoint: Path, tmp_path: Path):
    said = train(tiny_checkpoint, tmp_path / "disk", 1, "no")
    assert "exit code 0\nadapter saved: True" in said
    for name in ("metrics.jsonl", "credit.jsonl"):
        assert said.count(f"{name} cannot be written (No space left on device)") == 1
        # No line is torn; what fits the last block of the disk may be there.
        assert "torn" not in said


@pytest.mark.long
def test_a_full_disk_in_a_save_says_what_to_free(tiny_checkpoint: Path, tmp_path: Path):
    said = train(tiny_checkpoint, tmp_path / "disk", 3, "steps")
    run = tmp_path / "disk" / "run"
    assert "exit code 2" in said and "Traceback" not in said
    assert f"error: the run cannot be saved in {run}: No space left on device. Free: 0 " in said
    assert "The last whole checkpoint, checkpoint-2, is untouched. Free space, and go on" in said
    assert f"--resume_from_checkpoint {run}/checkpoint-2\n" in said
    assert said.count("whole:") == 1 and "whole: checkpoint-2 True" in said


class Vandal(TrainerCallback):
    """Do something to the output folder once the first step is logged."""

    def __init__(self, act: Callable[[Path], None]) -> None:
        self.act = act

    def on_step_end(self, args, state, control, **_):
        if state.global_step == 2:
            self.act(Path(args.output_dir))


@pytest.mark.long
def test_a_folder_that_vanishes_costs_what_it_held(make_trainer, tmp_path: Path, caplog):
    warn_once.cache_clear()
    trainer = make_trainer(peft_config=LoraConfig(target_modules="all-linear"), max_steps=4)
    trainer.add_callback(Vandal(shutil.rmtree))
    trainer.train()
    trainer.save_model()
    run = tmp_path / "run"
    assert [row["step"] for row in read_metrics(run)] == [2, 3, 4]
    assert (run / "adapter_model.safetensors").is_file()
    assert caplog.text.count(f"{run} has vanished, and is made again") == 1


@pytest.mark.long
def test_completions_that_cannot_be_logged_end_no_run(make_trainer, tmp_path: Path, caplog):
    warn_once.cache_clear()

    def no_folder(run: Path) -> None:
        shutil.rmtree(run / "completions")
        (run / "completions").touch()

    trainer = make_trainer(
        peft_config=LoraConfig(target_modules="all-linear"), max_steps=4, log_completions=True
    )
    trainer.add_callback(Vandal(no_folder))
    trainer.train()
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1, 2, 3, 4]
    assert caplog.text.count("A log cannot be written (") == 1


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EROFS, "Read-only file system", "run/checkpoint-4/optimizer.pt"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc] . file write failed"),
    ],
)
def test_what_disks_and_libraries_say(tmp_path: Path, error: Exception):
    for step in (2, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
        whole_checkpoints.seal(tmp_path / f"checkpoint-{step}", {"step": step, "settings": {}})
    with pytest.raises(SaveError) as raised, saving(tmp_path):
        raise error
    text = str(raised.value)
    assert "The last whole checkpoint, checkpoint-10, is untouched." in text
    assert "as by removing checkpoint-2 (0.0 MiB), set --save_total_limit" in text
    assert text.endswith(f"--resume_from_checkpoint {tmp_path / 'checkpoint-10'}")


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        FileNotFoundError(errno.ENOENT, "No such file", "/data/of/the/user.jsonl"),
        RuntimeError("CUDA out of memory"),
        SaveError("said already"),
        ValueError("no error of a disk"),
    ],
)
def test_other_errors_stay_what_they_are(tmp_path: Path, error: Exception):
    with pytest.raises(type(error)) as raised, saving(tmp_path):
        raise error
    assert raised.value is error


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path):
    said = r"Permission denied\. Free: .* No checkpoint was saved"
    with pytest.raises(SaveError, match=said), saving(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "a"))


def test_a_folder_that_has_gone_is_said(tmp_path: Path):
    gone = tmp_path / "gone"
    with pytest.raises(SaveError, match="No such file"), saving(gone):
        (gone / "a").write_text("x")
