"""What a logger of another maker gets: the names and values of `metrics.jsonl`."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from peft import LoraConfig
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerCallback
from transformers.integrations.integration_utils import rewrite_logs
from trl.extras import profiling

from grpo_hf import GRPOTrainer
from grpo_hf.run_files import METRICS_FILE, read_lines


def test_tensorboard_has_the_names_and_values_of_the_metrics(
    make_trainer: Callable[..., GRPOTrainer], tmp_path: Path
):
    trainer = make_trainer(
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
        eval_dataset=Dataset.from_list([{"prompt": "2 + 2 = "}]),
        eval_strategy="steps",
        eval_steps=1,
        per_device_eval_batch_size=4,
        report_to="tensorboard",
    )
    trainer.train()
    run = tmp_path / "run"
    expected = {}
    for row in read_lines(run / METRICS_FILE):
        step = row.pop("step")
        for name, value in rewrite_logs(row).items():
            # JSON has no NaN.
            expected[name, step] = math.nan if value is None else value
    (file,) = run.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
    found = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            found[name, event.step] = event.value
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        # The file of events holds float32.
        same = math.isclose(found[key], value, rel_tol=1e-6, abs_tol=1e-30)
        assert same or (math.isnan(found[key]) and math.isnan(value)), key
    names = {name for name, _ in found}
    ours = {"train/reward", "train/kl", "train/kl/median", "train/time/rollout", "eval/reward"}
    assert ours <= names
    assert {step for name, step in found if name == "train/reward"} == {1, 2}


class Trackio:
    """A logger that raises before its run begins and after it has ended, as trackio 0.43 does."""

    def __init__(self) -> None:
        self.is_open = False
        self.count = 0

    def log(self, metrics: dict[str, float], step: int | None = None) -> None:
        if not self.is_open:
            raise RuntimeError("Call trackio.init() before trackio.log().")
        self.count += 1


class TrackioCallback(TrainerCallback):
    def __init__(self, trackio: Trackio) -> None:
        self.trackio = trackio

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trackio.is_open = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trackio.is_open = False


def test_what_is_measured_before_the_training_is_not_reported_to_trackio(
    make_trainer: Callable[..., GRPOTrainer],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    trackio = Trackio()
    # TRL's decorator reports the times of its calls.
    monkeypatch.setattr(profiling, "is_trackio_available", lambda: True)
    monkeypatch.setattr(profiling, "trackio", trackio, raising=False)
    lora = LoraConfig(r=4, target_modules="all-linear")
    trainer = make_trainer(peft_config=lora, callbacks=[TrackioCallback(trackio)])
    trainer.args.report_to = ["trackio"]
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.packs
    assert trainer.args.report_to == ["trackio"] and trackio.count
    said = [line for line in caplog.messages if "trackio" in line]
    assert said == []
