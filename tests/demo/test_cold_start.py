"""The demo's supervised stage: its data, its device, its cache, and an interruption."""

import shutil
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import LlamaForCausalLM

import grpo_hf.demo.cold_start as module
from grpo_hf.data.readers import EMBEDDED_PROBLEMS
from grpo_hf.demo.cold_start import cold_start
from grpo_hf.demo.running_sums import running_sums
from grpo_hf.demo.word_problems import word_problems
from grpo_hf.runs.recipe import read_recipe
from grpo_hf.runs.train import cold_started


class Stopped(Exception):
    """An interruption before the first step."""


def started(monkeypatch: pytest.MonkeyPatch, cache: Path, **settings: Any) -> dict[str, Any]:
    """Return the arguments of the supervised trainer; the stage stops before it trains."""
    trainer_arguments: dict[str, Any] = {}

    def stop(**arguments: Any) -> None:
        trainer_arguments.update(arguments)
        raise Stopped

    monkeypatch.setattr(module, "SFTTrainer", stop)
    with pytest.raises(Stopped):
        cold_start(cache, **settings)
    return trainer_arguments


@pytest.mark.parametrize("use_cpu", [True, False])
def test_it_runs_on_the_device_of_the_run_that_follows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, use_cpu: bool
) -> None:
    assert started(monkeypatch, tmp_path, steps=1, use_cpu=use_cpu)["args"].use_cpu is use_cpu


def test_it_trains_on_problems_of_its_own_split(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = started(monkeypatch, tmp_path, steps=2, seed=3)["train_dataset"]
    questions = [prompt[0]["content"] for prompt in rows["prompt"]]
    problems = islice(word_problems("cold_start", seed=3), 2 * module.BATCH)
    assert questions == [row["question"] for row in problems]


@pytest.mark.parametrize("path", ["embedded:running_sums", "embedded:more_problems"])
def test_embedded_problems_are_learned_from_problems_of_their_kind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: str
) -> None:
    monkeypatch.setitem(
        EMBEDDED_PROBLEMS, "embedded:more_problems", partial(running_sums, largest=3)
    )
    expected = islice(EMBEDDED_PROBLEMS[path]("cold_start", seed=3), 2 * module.BATCH)
    assert worked_problems(monkeypatch, tmp_path, path) == list(expected)


@pytest.mark.parametrize("path", ["embedded:word_problems", "data.jsonl", None])
def test_without_problems_of_the_kind_word_problems_are_learned(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: str | None
) -> None:
    """Nothing is handed over, which would change the names of the checkpoints that people have."""
    assert worked_problems(monkeypatch, tmp_path, path) is None


def worked_problems(
    monkeypatch: pytest.MonkeyPatch, folder: Path, path: str | None
) -> list[dict[str, Any]] | None:
    """Return the rows that a run with this data hands to its cold start."""
    flags = ["--cold_start_steps", "2", "--seed", "3", "--output_dir", str(folder / "run")]
    recipe = read_recipe([*flags, "--model_name_or_path", "embedded:tiny", "--use_cpu"])
    recipe.task.dataset_path = path
    asked: dict[str, Any] = {}
    monkeypatch.setattr(module, "cold_start", lambda cache, **settings: asked.update(settings))
    cold_started(recipe)
    return asked["worked"]


def test_an_interrupted_stage_leaves_nothing_to_be_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started(monkeypatch, tmp_path, steps=1)
    assert not list(tmp_path.glob("cold_start-*"))


@pytest.mark.long
def test_a_signal_while_it_trains_or_writes_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stop(self: Any, folder: Path) -> None:
        (folder / "config.json").write_text("half")
        raise Stopped

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", stop)
    with pytest.raises(Stopped):
        cold_start(tmp_path, steps=1, use_cpu=True)
    assert not list(tmp_path.iterdir())


def test_a_run_that_begins_at_the_same_time_and_is_faster_costs_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write = LlamaForCausalLM.save_pretrained
    other = module._checkpoint_folder(tmp_path, 1, 0, False, False, None)

    def save(self: Any, folder: Path) -> None:
        write(self, folder)
        shutil.copytree(folder, other)

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", save)
    assert cold_start(tmp_path, steps=1, use_cpu=True) == other
    assert list(tmp_path.iterdir()) == [other]


@pytest.mark.long
def test_settings_have_a_checkpoint_each_and_the_second_run_finds_it(tmp_path: Path) -> None:
    first = cold_start(tmp_path, steps=1, use_cpu=True)
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert cold_start(tmp_path, steps=1, use_cpu=True) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    assert cold_start(tmp_path, steps=1, seed=1, use_cpu=True) != first


@pytest.fixture
def fresh_accelerator() -> Iterator[None]:
    """Let accelerate choose a precision again, in the test and after it."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def test_a_run_in_bf16_may_follow(tmp_path: Path, fresh_accelerator: None) -> None:
    folder = cold_start(tmp_path, steps=1, use_cpu=True, bf16=True)
    # accelerate refuses another precision than the first one of a process.
    assert Accelerator(cpu=True, mixed_precision="bf16").mixed_precision == "bf16"
    assert folder != module._checkpoint_folder(tmp_path, 1, 0, False, False, None)


def test_the_loss_is_printed_every_few_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 2.0, 6.0, 8.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    line = module._LossLine()
    for step in (5, 10, 15):
        state = SimpleNamespace(is_world_process_zero=True, max_steps=15, global_step=step)
        line.on_log(None, state, None, {"loss": 1.0})
    # The first came too soon, and the last step is said in any case.
    assert capsys.readouterr().out == (
        "cold start 10/15  loss 1.000\ncold start 15/15  loss 1.000\n"
    )
