"""A run that goes on from any of its checkpoints ends as one that was never interrupted."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from support.models import LORA

from grpo_hf import GRPOTrainer, trl_seam
from grpo_hf.durability import run_state
from grpo_hf.reporting.metrics_file import read_metrics

PROMPTS = [{"prompt": f"{n} + {n + 1} = ", "answer": str(2 * n + 1)} for n in range(10)]
STEPS = 8
# What takes time, and what is said of a call of `train()` alone.
CLOCKS = ("time", "latency", "runtime", "per_second", "waited", "step_time")


def run(make_trainer: Callable[..., GRPOTrainer], folder: Path, **given: Any) -> Path:
    settings = {
        "max_steps": STEPS,
        "save_strategy": "steps",
        "save_steps": 1,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 4,
        "output_dir": str(folder),
    }
    resume = given.pop("resume", None)
    data: Any = Dataset.from_list(PROMPTS)
    if given.pop("train_dataset", None):
        data = data.to_iterable_dataset().repeat(None)
    trainer = make_trainer(peft_config=LORA, train_dataset=data, **{**settings, **given})
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    return folder


def numbers_of(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for row in read_metrics(folder):
        # The summary at the end is that of a call of `train()`.
        if "train_loss" in row:
            continue
        rows.append({name: row[name] for name in row if not any(word in name for word in CLOCKS)})
    return rows


SETTINGS = {
    "iterations": {"num_iterations": 2},
    "a window of micro-batches": {"steps_per_generation": 4, "gradient_accumulation_steps": 2},
    "a window, TRL's way": {"steps_per_generation": 3, "packed_update": False},
    "windows and iterations": {"num_iterations": 2, "steps_per_generation": 2, "save_steps": 3},
    "epochs": {"per_device_train_batch_size": 8},
    "lines of three steps": {"logging_steps": 3, "num_iterations": 2},
    "critic": {"advantage_estimator": "gae", "num_iterations": 2},
    "dynamic sampling": {"dynamic_sampling": True, "steps_per_generation": 2},
    "a stream": {"train_dataset": "stream", "num_iterations": 2},
    "half precision": {"bf16": True, "num_iterations": 2},
    "steered": {"target_kl": 0.01, "reference_reset_every": 3, "num_iterations": 2},
}


def check_resuming(
    make_trainer: Callable[..., GRPOTrainer], folder: Path, settings: dict[str, Any], nth: int
) -> None:
    """Go on from every nth checkpoint of a run, and compare what comes of it."""
    whole = run(make_trainer, folder / "whole", **settings)
    expected = load_file(whole / "adapter_model.safetensors")
    every = settings.get("save_steps", 1)
    for step in range(every, STEPS, every)[::nth]:
        again = folder / f"from {step}"
        again.mkdir()
        shutil.copytree(whole / f"checkpoint-{step}", again / f"checkpoint-{step}")
        run(make_trainer, again, resume="auto", **settings)
        weights = load_file(again / "adapter_model.safetensors")
        for name, weight in expected.items():
            assert weight.equal(weights[name]), (step, name)
        logged = [row for row in numbers_of(whole) if row["step"] > step]
        assert numbers_of(again) == logged, step


@pytest.mark.long
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_from_some_checkpoints(
    make_trainer: Callable[..., GRPOTrainer], tmp_path: Path, settings: dict[str, Any]
) -> None:
    check_resuming(make_trainer, tmp_path, settings, nth=4)


def test_objects_of_a_subclass_keep_no_run_from_going_on(
    make_trainer: Callable[..., GRPOTrainer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Numbers of any kind are metrics; what else is in a rollout may be anything."""
    trainer = make_trainer(peft_config=LORA, num_iterations=2, max_steps=1)
    trainer.train()
    trainer._metrics["train"]["mine"] = [np.float64(0.5), torch.tensor(1.5)]
    kept = trl_seam.window_of(trainer)
    assert kept["metrics"]["mine"] == [0.5, 1.5]
    run_state.write_state(tmp_path, 0, {"window": kept})
    assert run_state.read_state(tmp_path, 0)["window"]["step"] == kept["step"]
    kept["rollout"][0]["mine"] = Path("mine")
    run_state.write_state(tmp_path, 0, {"window": kept})
    assert run_state.read_state(tmp_path, 0) == {}
    assert "goes on as TRL would" in caplog.text
    # What not even a file can hold costs the rollout, and neither the save nor the rest.
    for thing in (lambda: None, threading.Lock()):
        kept["rollout"][0]["mine"] = thing
        run_state.write_state(tmp_path, 0, {"window": kept, "critic": {"weight": 1}})
        assert run_state.read_state(tmp_path, 0) == {"window": None, "critic": {"weight": 1}}
    assert "The rollout under way cannot be saved" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_from_every_checkpoint(
    make_trainer: Callable[..., GRPOTrainer], tmp_path: Path, settings: dict[str, Any]
) -> None:
    check_resuming(make_trainer, tmp_path, settings, nth=1)
