"""A run that cannot learn says so once, says what to do, and learns what it would have learned."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig
from support.callbacks import state
from transformers import TrainerControl

from grpo_hf import GRPOTrainer, reward_settings
from grpo_hf.config import GRPOConfig
from grpo_hf.durability.dead_run import DeadRunWatch

MakeTrainer = Callable[..., GRPOTrainer]
LORA = LoraConfig(r=2, target_modules=["q_proj"])
LOGGER = "grpo_hf.durability.dead_run"

HEALTHY = {
    "loss": 0.1,
    "reward": 0.5,
    "reward_std": 0.5,
    "frac_reward_zero_std": 0.25,
    "completions/clipped_ratio": 0.5,
    "grad_norm": 0.3,
}


@reward_settings(in_process=True)
def huge(completions: list[str], **_: Any) -> list[float]:
    return [1e20 * (row % 3) for row, _ in enumerate(completions)]


@reward_settings(in_process=True)
def unjudged(completions: list[str], **_: Any) -> list[None]:
    return [None for _ in completions]


@reward_settings(in_process=True)
def nothing(completions: list[str], **_: Any) -> list[float]:
    return [0.0 for _ in completions]


@reward_settings(in_process=True)
def the_same(completions: list[str], **_: Any) -> list[float]:
    return [1.0 for _ in completions]


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == LOGGER]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"learning_rate": 1e6, "max_steps": 2}, "run diverges. learning_rate is 1e+06"),
        ({"learning_rate": 10.0, "max_steps": 2}, "run diverges. learning_rate is 10"),
        ({"reward_funcs": huge, "max_steps": 1}, "standard deviation overflows float32"),
        ({"reward_funcs": unjudged}, "Every reward returned None"),
        ({"reward_funcs": nothing}, "earned 0, so there is nothing to learn from"),
        ({"reward_funcs": the_same}, "All completions of each group earned the same"),
        ({}, "cut off at max_completion_length"),
    ],
)
def test_a_run_that_cannot_learn_says_so_once(
    make_trainer: MakeTrainer,
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, Any],
    words: str,
) -> None:
    with caplog.at_level(logging.WARNING, logger=LOGGER):
        make_trainer(**({"peft_config": LORA, "max_steps": 4} | settings)).train()
    assert sum(words in message for message in said(caplog)) == 1
    # The untrained model ends no completion, which is one more sign; no other may be seen.
    others = [message for message in said(caplog) if words not in message]
    assert all("max_completion_length" in message for message in others)


@pytest.mark.long
def test_saying_so_changes_nothing(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(folder: str) -> dict[str, torch.Tensor]:
        trainer = make_trainer(peft_config=LORA, max_steps=4, learning_rate=10.0, output_dir=folder)
        trainer.train()
        return trainer.model.state_dict()

    folder = make_trainer().args.output_dir
    watched = trained(f"{folder}-watched")
    monkeypatch.setattr(DeadRunWatch, "on_train_begin", lambda *_, **__: None)
    monkeypatch.setattr(DeadRunWatch, "on_log", lambda *_, **__: None)
    alone = trained(f"{folder}-alone")
    assert all(torch.equal(watched[name], alone[name]) for name in alone)


def watch(
    args: GRPOConfig, lines: list[dict[str, Any]], every: int = 1, steps: int = 100
) -> DeadRunWatch:
    callback = DeadRunWatch()
    callback.on_train_begin(args, state(0, steps=steps), TrainerControl())
    for number, line in enumerate(lines, 1):
        callback.on_log(args, state(number * every, steps=steps), TrainerControl(), logs=line)
    return callback


@pytest.fixture
def args(tmp_path: Any) -> Callable[..., GRPOConfig]:
    def make(**settings: Any) -> GRPOConfig:
        return GRPOConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, **settings)

    return make


@pytest.mark.parametrize(
    "dead",
    [
        {"reward": None, "reward_std": None},
        {"reward": 0.0, "reward_std": 0.0, "frac_reward_zero_std": 1.0},
        {"reward_std": 0.0, "frac_reward_zero_std": 1.0},
        {"completions/clipped_ratio": 1.0},
        {"completions/clipped_ratio": 0.6},
        {"frac_reward_zero_std": 0.5},
        {"grad_norm": 0.0},
    ],
)
def test_a_sign_has_to_last(
    args: Callable[..., GRPOConfig], caplog: pytest.LogCaptureFixture, dead: dict[str, Any]
) -> None:
    line = HEALTHY | dead
    watch(args(), [line] * 9 + [HEALTHY] + [line] * 9)
    assert said(caplog) == []
    watch(args(), [line] * 30)
    assert len(said(caplog)) == 1 and "10 steps" in said(caplog)[0]
    caplog.clear()
    # A line of ten steps is about all of them.
    watch(args(), [line], every=10)
    assert len(said(caplog)) == 1


def test_groups_that_agree_more_and_more(
    args: Callable[..., GRPOConfig], caplog: pytest.LogCaptureFixture
) -> None:
    """A run of a user: of four groups two to four agree in its second half."""
    shares = [0.25] * 10 + [0.5, 1.0, 0.75, 1.0, 0.5, 0.5, 1.0, 0.75, 0.5, 1.0]
    watch(args(), [HEALTHY | {"frac_reward_zero_std": share} for share in shares])
    assert len(said(caplog)) == 1 and said(caplog)[0].startswith("In half of the groups or more")


def test_a_healthy_run_is_left_in_peace(
    args: Callable[..., GRPOConfig], caplog: pytest.LogCaptureFixture
) -> None:
    evaluation = {"eval_reward": 0.0, "eval_reward_std": 0.0}
    other_update = {"loss": 0.1, "grad_norm": 0.0}
    watch(args(), [HEALTHY, evaluation, other_update] * 20)
    assert said(caplog) == []


ALIKE = {"reward_std": 0.0, "frac_reward_zero_std": 1.0}


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"advantage_estimator": "reward"}, ALIKE),
        ({"advantage_estimator": "gae"}, ALIKE),
        ({"dynamic_sampling": True}, ALIKE),
        ({"dynamic_sampling": True}, {"frac_reward_zero_std": 0.7}),
        ({"process_reward": "monte_carlo(n=2)"}, ALIKE),
        ({}, ALIKE | {"rewards/mine/steps": 2.0}),
        ({}, ALIKE | {"reward": 0.0, "rewards/mine/steps": 2.0}),
        ({"generation_kwargs": {"stop_strings": ["."]}}, {"completions/clipped_ratio": 1.0}),
        ({"generation_kwargs": {"stop_strings": ["."]}}, {"completions/clipped_ratio": 0.7}),
    ],
)
def test_what_is_no_sign_under_other_settings(
    args: Callable[..., GRPOConfig],
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, Any],
    line: dict[str, Any],
) -> None:
    watch(args(**settings), [HEALTHY | line] * 20)
    assert said(caplog) == []
