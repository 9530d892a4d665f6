"""What the checks of numbers, and a checkpoint of each step, cost of a step of the demo."""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from peft import LoraConfig
from transformers import TrainerCallback

from grpo_hf import GRPOTrainer
from grpo_hf.durability import finite
from grpo_hf.durability.dead_run import DeadRunWatch

MOST, MOST_FOR_SAVING = 0.01, 0.05
STEPS = 10
REPEATS = 3
# Those of recipes/gsm8k_tiny.yaml, whose policy is the embedded model.
DEMO = {
    "num_generations": 8,
    "num_iterations": 2,
    "per_device_train_batch_size": 128,
    "max_completion_length": 48,
    "learning_rate": 5e-4,
    "logging_steps": 5,
    "max_steps": STEPS,
}
CHECKS = (
    (finite.StepNumbers, "add"),
    (finite.StepNumbers, "judge"),
    (finite, "check_before_training"),
    (finite, "check_weights"),
    (DeadRunWatch, "on_train_begin"),
    (DeadRunWatch, "on_log"),
)


class StepTimes(TrainerCallback):
    """Takes the time of steps, the first of which measures and warms up."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.ends.append(time.perf_counter())

    def seconds(self) -> float:
        return (self.ends[-1] - self.ends[1]) / (len(self.ends) - 2)


@pytest.mark.slow
def test_checks_cost_less_than_a_hundredth_of_a_step(
    make_trainer: Callable[..., GRPOTrainer], tmp_path: Path
) -> None:
    """Training with and without checks takes turns; the share is timed inside the checks.

    On a busy machine whole steps differ by more than what is looked for, so the ratio of their
    times is shown and the share is what is held to the bar.
    """
    spent = {name: 0.0 for _, name in CHECKS}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*positional: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*positional, **named)
            finally:
                spent[name] += time.perf_counter() - start

        return call

    def train(folder: str, *, checked: bool) -> float:
        times = StepTimes()
        with pytest.MonkeyPatch.context() as patch:
            for owner, name in CHECKS:
                found = timed(name, getattr(owner, name))
                patch.setattr(owner, name, found if checked else lambda *_, **__: None)
            trainer = make_trainer(
                peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
                output_dir=str(tmp_path / folder),
                **DEMO,
            )
            trainer.add_callback(times)
            trainer.train()
        return times.seconds()

    with_checks, without = [], []
    for repeat in range(REPEATS):
        without.append(train(f"without-{repeat}", checked=False))
        with_checks.append(train(f"with-{repeat}", checked=True))
    share = sum(spent.values()) / REPEATS / STEPS / median(with_checks)
    ratios = [one / other for one, other in zip(with_checks, without, strict=True)]
    for name, seconds in spent.items():
        print(f"{name}: {seconds / REPEATS / STEPS * 1000:.3f} ms a step")
    print(f"{median(with_checks):.3f} s a step; with ÷ without {median(ratios):.3f}, {share:.2%}")
    assert share < MOST


@pytest.mark.slow
def test_saving_each_step_costs_less_than_a_twentieth_of_it(
    make_trainer: Callable[..., GRPOTrainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training with and without checkpoints takes turns; the share is timed inside the saves."""
    spent: list[float] = []
    save = GRPOTrainer._save_checkpoint

    def timed(*positional: Any, **named: Any) -> None:
        start = time.perf_counter()
        save(*positional, **named)
        spent.append(time.perf_counter() - start)

    monkeypatch.setattr(GRPOTrainer, "_save_checkpoint", timed)

    def train(folder: str, saves: str) -> float:
        times = StepTimes()
        trainer = make_trainer(
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
            output_dir=str(tmp_path / folder),
            save_strategy=saves,
            save_steps=1,
            save_total_limit=2,
            **DEMO,
        )
        trainer.add_callback(times)
        trainer.train()
        return times.seconds()

    saving, without = [], []
    for repeat in range(REPEATS):
        without.append(train(f"without-{repeat}", "no"))
        saving.append(train(f"saving-{repeat}", "steps"))
    share = median(spent) / median(without)
    ratios = [one / other for one, other in zip(saving, without, strict=True)]
    print(f"a save {median(spent) * 1000:.0f} ms, a step {median(without):.3f} s: {share:.1%}")
    print(f"steps with a save ÷ without {median(ratios):.3f}")
    assert share < MOST_FOR_SAVING
