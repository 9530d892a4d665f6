"""Checkpoints that were torn in every way: a run goes on from the newest whole one, or says why."""

import errno
import hashlib
import itertools
import json
import os
import shutil
import stat
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import save_file
from support.models import LORA
from support.processes import SCRIPTS, launch
from support.tears import TEARS
from transformers import TrainerCallback

from grpo_hf import GRPOTrainer
from grpo_hf.durability import whole_checkpoints
from grpo_hf.durability.resume import checkpoint_for, settings_of
from grpo_hf.errors import ConfigError, GrpoError

SAVES: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}


@pytest.fixture(scope="module")
def three(module_trainer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with checkpoints of steps 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("three") / "run"
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    module_trainer(peft_config=LORA, output_dir=str(folder), **settings).train()
    return folder


@pytest.mark.parametrize(
    ("tear", "name"), TEARS, ids=[f"{tear.__name__} {name}" for tear, name in TEARS]
)
def test_a_torn_file_is_found(
    three: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, tear: Any, name: str
) -> None:
    shutil.copytree(three, tmp_path / "run")
    tear(tmp_path / "run/checkpoint-3" / name)
    assert checkpoint_for(tmp_path / "run", "auto") == tmp_path / "run/checkpoint-2"
    said = "manifest.json" if name == "manifest.json" else name
    assert "checkpoint-3 is not whole" in caplog.text and said in caplog.text
    with pytest.raises(ConfigError, match=r"The newest whole one beside it is .*checkpoint-2"):
        checkpoint_for(tmp_path / "run", str(tmp_path / "run/checkpoint-3"))


def test_any_flipped_bit_of_a_manifest_is_found(tmp_path: Path) -> None:
    """Also one in the name of a setting, by which another run would go on from here."""
    for step in (1, 2):
        checkpoint = tmp_path / f"checkpoint-{step}"
        checkpoint.mkdir()
        (checkpoint / "run_state_0.pt").write_bytes(b"state")
        settings = {"seed": 42, "data": None, "save_only_model": False}
        whole_checkpoints.seal(checkpoint, {"step": step, "settings": settings})
    assert checkpoint_for(tmp_path, "auto") == tmp_path / "checkpoint-2"
    manifest = tmp_path / "checkpoint-2/manifest.json"
    content = manifest.read_bytes()
    for place in range(len(content)):
        torn = bytearray(content)
        torn[place] ^= 1
        manifest.write_bytes(torn)
        assert checkpoint_for(tmp_path, "auto") == tmp_path / "checkpoint-1", content[place:]


def test_a_file_that_cannot_be_read_is_not_whole(
    three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(three, tmp_path / "run")
    read = hashlib.file_digest

    def bad_block(stream: Any, name: str) -> Any:
        if stream.name.endswith("checkpoint-3/optimizer.pt"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(stream, name)

    monkeypatch.setattr(hashlib, "file_digest", bad_block)
    found = whole_checkpoints.find(tmp_path / "run")
    assert found.newest == tmp_path / "run/checkpoint-2"
    assert list(found.skipped.values()) == ["optimizer.pt cannot be read (Input/output error)"]


def test_all_folders_of_a_checkpoint_are_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names of files are in the folders: PEFT, FSDP and DeepSpeed make some of their own."""
    flushed, flush = [], os.fsync

    def noted(descriptor: int) -> None:
        flushed.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    run = tmp_path / "run"
    process = Process(is_main_process=True)
    with whole_checkpoints.written_whole(run, 3, {}, process) as folder:
        (folder / "checkpoint-3/mine/deep").mkdir(parents=True)
        (folder / "checkpoint-3/mine/deep/adapter_model.safetensors").touch()
    unfinished = run / ".unfinished/checkpoint-3"
    for each in (unfinished / "mine/deep", unfinished / "mine", unfinished, run):
        assert str(each) in flushed


def test_a_disk_that_fails_under_a_folder_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise older checkpoints would be removed for one that is not on the disk."""
    for number, fails in ((errno.EIO, True), (errno.EINVAL, False)):

        def fsync(descriptor: int, number: int = number) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fsync)
        checkpoint = tmp_path / str(number) / "checkpoint-1"
        checkpoint.mkdir(parents=True)
        with pytest.raises(OSError, match="output error") if fails else nullcontext():
            whole_checkpoints.seal(checkpoint, {"step": 1, "settings": {}})


@pytest.mark.long
def test_processes_go_on_from_the_same_checkpoint(three: Path, tmp_path: Path) -> None:
    """One of two has a torn file, on a disk of its own."""
    runs = [tmp_path / f"machine-{rank}" for rank in range(2)]
    for run in runs:
        shutil.copytree(three, run)
    (runs[1] / "checkpoint-3/optimizer.pt").unlink()
    said = launch(2, tmp_path, script=SCRIPTS / "common_checkpoint.py")
    assert said.count("from checkpoint-2") == 2
    assert "checkpoint-3 is not whole (for process 1)" in said


def test_a_checkpoint_has_the_card_of_its_run(three: Path) -> None:
    card = (three / "checkpoint-3/README.md").read_text()
    title = next(line for line in (three / "README.md").read_text().splitlines() if "# " in line)
    assert title in card and "- PEFT " in card and "More Information Needed" not in card
    # It is the adapter's too: PEFT has added what it knows.
    assert "library_name: peft" in card


def test_a_process_may_be_killed_at_any_line(three: Path, tmp_path: Path) -> None:
    """What a save leaves after each of its steps: nothing, or the checkpoint."""
    for stage in ("written", "sealed", "replaced", "named"):
        run = tmp_path / stage
        shutil.copytree(three, run)
        unfinished = run / ".unfinished" / "checkpoint-3"
        unfinished.parent.mkdir()
        shutil.copytree(three / "checkpoint-3", unfinished)
        if stage == "written":
            (unfinished / "manifest.json").unlink()
        if stage in ("replaced", "named"):
            (run / "checkpoint-3").rename(run / ".replaced")
        if stage == "named":
            unfinished.rename(run / "checkpoint-3")
        # Another program looks, and touches nothing: the run may be alive.
        before = sorted(run.rglob("*"))
        checkpoint_for(run, "auto")
        assert sorted(run.rglob("*")) == before
        assert checkpoint_for(run, True, Accelerator(cpu=True)) == run / "checkpoint-3"
        assert not (run / ".unfinished").exists() and not (run / ".replaced").exists()


@pytest.mark.long
def test_the_limit_keeps_the_last_whole_one(
    make_trainer: Callable[..., GRPOTrainer], tmp_path: Path
) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    settings |= {"output_dir": str(tmp_path / "run"), "max_steps": 3}
    make_trainer(peft_config=LORA, **settings).train()
    (only,) = (tmp_path / "run").glob("checkpoint-*")
    assert only.name == "checkpoint-3" and not whole_checkpoints.why_not_whole(only)


@pytest.mark.parametrize(
    ("limit", "best", "kept"),
    [
        (None, None, {2, 4, 6, 9}),
        (-1, None, {2, 4, 6, 9}),
        (3, None, {2, 4, 6}),
        (2, None, {4, 6}),
        (1, None, {6}),
        (1, 2, {2, 6}),
        (2, 9, {6, 9}),
    ],
)
def test_what_was_just_written_and_the_best_stay(
    tmp_path: Path, limit: int | None, best: int | None, kept: set[int]
) -> None:
    """The checkpoint of step 9 was torn, and the run went on from that of step 4."""
    for step in (2, 4, 6, 9):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-notes").mkdir()
    # The run that found it was told its folder by a relative path.
    place = Path(os.path.relpath(tmp_path / f"checkpoint-{best}")) if best else None
    whole_checkpoints.remove_beyond(limit, tmp_path / "checkpoint-6", place)
    names = {folder.name for folder in tmp_path.iterdir()}
    assert names == {f"checkpoint-{step}" for step in kept} | {"checkpoint-notes"}


@pytest.mark.long
def test_the_best_checkpoint_has_its_name(
    make_trainer: Callable[..., GRPOTrainer], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    settings |= {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    settings |= {"metric_for_best_model": "eval_reward", "output_dir": str(tmp_path / "run")}
    rows = [{"prompt": "1 + 1 = "}] * 8

    trainer = make_trainer(peft_config=LORA, eval_dataset=Dataset.from_list(rows), **settings)
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.parent == tmp_path / "run" and best.is_dir()
    newest = json.loads((tmp_path / "run/checkpoint-2/trainer_state.json").read_text())
    assert newest["best_model_checkpoint"] == str(best)


@pytest.mark.long
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"per_device_train_batch_size": 4}, "per_device_train_batch_size is 4 and was 8"),
        ({"num_generations": 8}, "num_generations is 8 and was 4"),
        ({"seed": 7}, "seed is 7 and was 42"),
        ({"train_dataset": "other"}, "data is 8 rows"),
    ],
)
def test_another_run_does_not_go_on_from_it(
    make_trainer: Callable[..., GRPOTrainer],
    three: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    changed: dict[str, Any],
    said: str,
) -> None:

    shutil.copytree(three, tmp_path / "run")
    if "train_dataset" in changed:
        changed = {"train_dataset": Dataset.from_list([{"prompt": "a", "answer": "b"}] * 8)}
    settings = {"output_dir": str(tmp_path / "run"), "max_steps": 4, "peft_config": LORA}
    with pytest.raises(ConfigError, match=said):
        make_trainer(**settings, **changed).train(resume_from_checkpoint="auto")
    trainer = make_trainer(**settings, **changed, resume_changed=True)
    trainer.train(resume_from_checkpoint="auto")
    assert trainer.state.global_step == 4
    assert f"and not as it was: {said}" in caplog.text


def test_weights_alone_do_not_go_on(
    make_trainer: Callable[..., GRPOTrainer], tmp_path: Path
) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1, "output_dir": str(tmp_path / "run")}
    make_trainer(peft_config=LORA, save_only_model=True, max_steps=1, **settings).train()
    with pytest.raises(ConfigError, match="it holds the weights alone"):
        make_trainer(peft_config=LORA, max_steps=2, **settings).train(resume_from_checkpoint=True)


@pytest.mark.long
def test_a_run_begins_where_none_has_saved(
    make_trainer: Callable[..., GRPOTrainer], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 1, "reward": 1.0}\n')
    settings = {"output_dir": str(run), "peft_config": LORA}
    trainer = make_trainer(**settings)
    with pytest.raises(GrpoError, match="holds a run already"):
        trainer.train()
    with pytest.raises(ConfigError, match="no checkpoint to resume from"):
        trainer.train(resume_from_checkpoint=True)
    trainer.train(resume_from_checkpoint="auto")
    trainer.save_model()
    # Weights without a checkpoint are another run's, and are not written over.
    with pytest.raises(GrpoError, match="holds a run already"):
        make_trainer(**settings).train(resume_from_checkpoint="auto")


@pytest.mark.long
def test_a_run_that_died_before_its_first_checkpoint_says_that_it_begins_again(
    make_trainer: Callable[..., GRPOTrainer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Dies(TrainerCallback):
        def on_step_end(self, *_: Any, **more: Any) -> None:
            raise InterruptedError

    run = tmp_path / "run"
    settings = {"output_dir": str(run), "peft_config": LORA, "max_steps": 1}
    dying = make_trainer(**settings, callbacks=[Dies()])
    with pytest.raises(InterruptedError):
        dying.train(resume_from_checkpoint="auto")
    # In a fresh folder nothing begins again.
    assert "begins again" not in capsys.readouterr().out
    make_trainer(**settings).train(resume_from_checkpoint="auto")
    said = capsys.readouterr().out
    assert said.count(f"{run} has no checkpoint yet: its run begins again at step 1.\n") == 1


def test_a_finished_run_is_found_finished(three: Path, tmp_path: Path, make_trainer: Any) -> None:
    shutil.copytree(three, tmp_path / "run")
    trainer = make_trainer(output_dir=str(tmp_path / "run"), max_steps=3, peft_config=LORA)
    assert trainer.train(resume_from_checkpoint="auto").global_step == 3
    assert trainer.state.global_step == 3


@pytest.mark.long
def test_a_run_of_more_epochs_goes_on(make_trainer: Any, tmp_path: Path) -> None:
    rows = Dataset.from_list([{"prompt": f"{n} + 1 = "} for n in range(2)])
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": -1}
    settings |= {"train_dataset": rows, "output_dir": str(tmp_path / "run"), "peft_config": LORA}
    make_trainer(num_train_epochs=2, **settings).train()
    for epochs, steps in ((2, 2), (4, 4)):
        trainer = make_trainer(num_train_epochs=epochs, **settings)
        assert trainer.train(resume_from_checkpoint="auto").global_step == steps


@pytest.mark.long
def test_what_is_left_of_another_geometry_is_not_taken_up(
    make_trainer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "peft_config": LORA}
    settings |= {"output_dir": str(tmp_path / "run"), "per_device_train_batch_size": 4}
    # Two of three micro-batches are left.
    make_trainer(steps_per_generation=3, max_steps=1, **settings).train()
    trainer = make_trainer(steps_per_generation=1, max_steps=3, resume_changed=True, **settings)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3
    assert "What was left of its rollout" in caplog.text


@pytest.mark.long
def test_another_adapter_does_not_go_on(make_trainer: Any) -> None:
    def trainer(**adapter: Any) -> Any:
        config = LoraConfig(**{"r": 2, "target_modules": ["q_proj", "v_proj"]} | adapter)
        return make_trainer(peft_config=config, resume_changed=True, **SAVES)

    trainer().train()
    for other, said in (
        ({"r": 4}, "the adapter's r is 4 and was 2"),
        ({"lora_alpha": 64}, "the adapter's lora_alpha is 64 and was 8"),
        ({"target_modules": ["q_proj"]}, "the adapter's target_modules is"),
    ):
        with pytest.raises(ConfigError, match=said):
            trainer(**other).train(resume_from_checkpoint=True)
    # Dropout belongs to the training, and the order of modules to nothing.
    trainer(lora_dropout=0.1, target_modules=["v_proj", "q_proj"]).train(
        resume_from_checkpoint=True
    )


@pytest.mark.long
def test_settings_that_may_change_are_said(
    make_trainer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    make_trainer(**SAVES).train()
    make_trainer(**SAVES | {"max_steps": 3}).train(resume_from_checkpoint=True)
    assert "with other settings" not in caplog.text
    changed = SAVES | {"max_steps": 4, "beta": 0.5, "learning_rate": 3e-3, "logging_steps": 2}
    changed["disable_dropout"] = True
    make_trainer(**changed).train(resume_from_checkpoint=True)
    assert "disable_dropout is True and was False" in caplog.text
    said = "with other settings than before: beta is 0.5 and was"
    assert said in caplog.text and "learning_rate is 0.003 and was" in caplog.text
    assert "The learning rate stays the checkpoint's" in caplog.text
    assert "logging_steps is" not in caplog.text


def test_objects_among_the_settings_are_no_other_settings(make_trainer: Any) -> None:
    """Each process has objects of its own, and JSON has no keys but texts."""
    settings = []
    for _ in range(2):
        trainer = make_trainer()
        trainer.args.model_init_kwargs = {"config": object(), (1, 2): 3}
        settings.append(settings_of(trainer.args, None, trainer.model))
    assert settings[0] == settings[1] == json.loads(json.dumps(settings[0]))


def test_rows_that_a_transform_draws_are_the_same_data(make_trainer: Any, tmp_path: Path) -> None:
    drawn = itertools.count()

    def other_each_time(batch: dict[str, list[str]]) -> dict[str, list[str]]:
        return {"prompt": [f"{next(drawn)} + 1 = " for _ in batch["prompt"]]}

    rows = Dataset.from_list([{"prompt": "a"}] * 8).with_transform(other_each_time)
    first, second = make_trainer(), make_trainer()
    assert settings_of(first.args, rows, first.model) == settings_of(
        second.args, rows, second.model
    )


class Process:
    """One of two machines, as accelerate describes it; the other one is not asked here."""

    def __init__(self, *, is_main_process: bool) -> None:
        self.is_main_process = is_main_process
        self.is_local_main_process = True

    def wait_for_everyone(self) -> None: ...


@pytest.mark.parametrize("is_main", [True, False])
def test_machines_without_a_common_disk_have_a_part_each(tmp_path: Path, is_main: bool) -> None:
    process = Process(is_main_process=is_main)
    with whole_checkpoints.written_whole(tmp_path, 3, {}, process) as folder:
        (folder / "checkpoint-3").mkdir(parents=True)
        (folder / "checkpoint-3/rng_state_1.pth").touch()
    assert whole_checkpoints.find(tmp_path).newest == tmp_path / "checkpoint-3"
    assert not (tmp_path / ".unfinished").exists()


def test_on_a_common_disk_the_first_process_writes(tmp_path: Path) -> None:
    """The second machine finds nothing left to seal, and removes nothing."""
    first, second = Process(is_main_process=True), Process(is_main_process=False)
    with (
        whole_checkpoints.written_whole(tmp_path, 3, {"by": "second"}, second),
        whole_checkpoints.written_whole(tmp_path, 3, {"by": "first"}, first) as folder,
    ):
        (folder / "checkpoint-3").mkdir(parents=True)
    manifest = whole_checkpoints.manifest_of(tmp_path / "checkpoint-3")
    assert manifest is not None and manifest["settings"] == {"by": "first"}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"mine/adapter_model.safetensors", "optimizer.pt", "scheduler.pt"}, ""),
        ({"global_step3/mp_rank_00_model_states.pt"}, ""),
        ({"pytorch_model_fsdp_0/__0_0.distcp", "optimizer_0/__0_0.distcp"}, ""),
        ({"model.safetensors", "scheduler.pt"}, "optimizer.pt is missing"),
        ({"optimizer.pt", "scheduler.pt"}, "it holds no weights"),
    ],
)
def test_checkpoints_of_other_programs(tmp_path: Path, files: set[str], said: str) -> None:
    (tmp_path / "trainer_state.json").write_text("{}")
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".safetensors"):
            save_file({"weight": torch.zeros(1)}, tmp_path / name)
        else:
            torch.save({}, tmp_path / name)
    assert whole_checkpoints.why_not_whole(tmp_path) == said
