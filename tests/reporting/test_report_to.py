"""What a logger of another maker gets: the names and values of `metrics.jsonl`."""

import logging
import math
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from peft import LoraConfig
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerCallback
from transformers.integrations.integration_utils import rewrite_logs
from trl.extras import profiling
from trl.trainer import base_trainer

from grpo_hf import GRPOTrainer
from grpo_hf.run_files import METRICS_FILE, read_lines

# What transformers' callbacks keep from a logger's curves; wandb has them in its summary.
OF_THE_WHOLE_RUN = {
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "train_loss",
    "total_flos",
}


def scalars_of_tensorboard(run: Path) -> dict[tuple[str, int], float]:
    """Return the values in a run's file of events, by name and step."""
    (file,) = run.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
    found = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            found[name, event.step] = event.value
    return found


def train(make_trainer: Callable[..., GRPOTrainer], *loggers: str) -> None:
    """Train two steps and evaluate after each, with the numbers going to loggers."""
    trainer = make_trainer(
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
        eval_dataset=Dataset.from_list([{"prompt": "2 + 2 = "}]),
        eval_strategy="steps",
        eval_steps=1,
        per_device_eval_batch_size=4,
        report_to=list(loggers),
    )
    trainer.train()


@pytest.mark.long
def test_tensorboard_has_the_names_and_values_of_the_metrics(
    make_trainer: Callable[..., GRPOTrainer], tmp_path: Path
):
    train(make_trainer, "tensorboard")
    run = tmp_path / "run"
    expected = {}
    for row in read_lines(run / METRICS_FILE):
        step = row.pop("step")
        for name, value in rewrite_logs(row).items():
            # JSON has no NaN.
            expected[name, step] = math.nan if value is None else value
    found = scalars_of_tensorboard(run)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        # The file of events holds float32.
        same = math.isclose(found[key], value, rel_tol=1e-6, abs_tol=1e-30)
        assert same or (math.isnan(found[key]) and math.isnan(value)), key
    names = {name for name, _ in found}
    ours = {"train/reward", "train/kl", "train/kl/median", "train/time/rollout", "eval/reward"}
    assert ours <= names
    assert {step for name, step in found if name == "train/reward"} == {1, 2}


class Config(dict):
    """The configuration of a run, which takes a flag of wandb's with its entries."""

    def update(self, entries: dict[str, Any], allow_val_change: bool) -> None:
        super().update(entries)


@pytest.fixture
def package(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A package in the place of wandb or of trackio, which keeps in `logged` what it is given."""
    name = request.param
    package: Any = ModuleType(name)
    package.__spec__ = ModuleSpec(name, None)
    package.logged = []
    package.log = lambda metrics, step=None: package.logged.append(metrics)
    package.config = Config()
    package.init = package.finish = lambda **_: None
    if name == "wandb":
        package.run = SimpleNamespace(summary={}, url=None, _label=lambda code: None)
        errors: Any = ModuleType("wandb.sdk.lib.config_util")
        errors.ConfigError = type("ConfigError", (Exception,), {})
        monkeypatch.setitem(sys.modules, errors.__name__, errors)
    else:
        nowhere = SimpleNamespace(get=lambda: None)
        package.context_vars = SimpleNamespace(current_space_id=nowhere, current_project=nowhere)
    monkeypatch.setitem(sys.modules, name, package)
    # TRL has looked for the package when it was imported.
    for module in (profiling, base_trainer):
        monkeypatch.setattr(module, name, package, raising=False)
    return package


@pytest.mark.long
@pytest.mark.parametrize("package", ["wandb", "trackio"], indirect=True)
def test_other_loggers_have_the_names_and_values_that_tensorboard_has(
    package: Any, make_trainer: Callable[..., GRPOTrainer], tmp_path: Path
):
    train(make_trainer, "tensorboard", package.__name__)
    found = {}
    for logged in package.logged:
        metrics = dict(logged)
        # TRL's times of its calls come apart, and to no file of events.
        if all(name.startswith("profiling/") for name in metrics):
            continue
        step = metrics.pop("train/global_step")
        found |= {(name, step): value for name, value in metrics.items()}
    whole_run = {f"train/{name}" for name in OF_THE_WHOLE_RUN}
    expected = scalars_of_tensorboard(tmp_path / "run")
    assert whole_run <= {name for name, _ in expected}
    expected = {key: value for key, value in expected.items() if key[0] not in whole_run}
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-30, nan_ok=True)
    assert {"train/reward", "train/kl", "eval/reward"} <= {name for name, _ in found}
    if package.__name__ == "wandb":
        assert package.run.summary.keys() == OF_THE_WHOLE_RUN


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
