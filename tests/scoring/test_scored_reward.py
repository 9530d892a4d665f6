"""Scoring that begins before it is asked for: the same results, wherever it runs."""

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.models import LORA

from grpo_hf import GRPOTrainer, reward_settings
from grpo_hf.reporting.metrics_file import read_metrics
from grpo_hf.update import log_probs

pytestmark = pytest.mark.long

MakeTrainer = Callable[..., GRPOTrainer]


def test_rewards_run_during_the_reference_pass(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The reference pass waits here for rewards to begin, which TRL would start only after it."""
    begun = threading.Event()
    awaited = threading.Event()
    apart = str(tmp_path / "begun")

    @reward_settings(in_process=True)
    def patient(completions: list[str], **_: Any) -> list[float]:
        begun.set()
        return [float(len(text)) for text in completions]

    @reward_settings(in_process=True)
    async def patient_too(completions: list[str], **_: Any) -> list[float]:
        awaited.set()
        return [float(len(text)) for text in completions]

    def in_a_worker(completions: list[str], **_: Any) -> list[float]:
        open(apart, "w").close()
        return [float(len(text)) for text in completions]

    trainer = make_trainer(
        reward_funcs=[patient, patient_too, in_a_worker], peft_config=LORA, max_steps=1
    )
    score = log_probs.packed_log_probs
    seen = []

    def reference_pass(*block: Any, **settings: Any) -> Any:
        # The policy pass scores all rows at once, and so does the check before the first step.
        if settings["budget"] is not None:
            for _ in range(200):
                if not Path(apart).exists():
                    threading.Event().wait(0.1)
            seen.append((begun.wait(20), awaited.wait(20), Path(apart).exists()))
        return score(*block, **settings)

    monkeypatch.setattr(log_probs, "packed_log_probs", reference_pass)
    trainer.train()
    assert seen == [(True, True, True)]


def test_what_rewards_see_and_log_is_what_trl_gives_them(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    calls = []

    @reward_settings(in_process=True, batched=True)
    def curious(
        prompts: Any,
        completions: Any,
        completion_ids: Any,
        answer: Any,
        log_metric: Any,
        **rest: Any,
    ) -> Any:
        log_metric("mean_answer", sum(map(int, answer)) / len(answer))
        calls.append(
            (
                prompts,
                completions,
                completion_ids,
                answer,
                sorted(rest),
                threading.current_thread().name,
            )
        )
        return [float(len(ids)) for ids in completion_ids]

    trainer = make_trainer(reward_funcs=curious, peft_config=LORA, max_steps=2)
    calls.clear()  # the trainer has tried it
    trainer.train()
    assert len(calls) == 2  # once per step
    for prompts, completions, completion_ids, answer, rest, thread in calls:
        assert [len(column) for column in (prompts, completions, completion_ids, answer)] == [8] * 4
        assert rest == ["log_extra", "trainer_state"]
        assert thread.startswith("rewards")
    for row, call in zip(read_metrics(tmp_path / "run"), calls, strict=True):
        assert row["mean_answer"] == pytest.approx(sum(map(int, call[3])) / 8)
        assert row["reward"] == pytest.approx(sum(map(len, call[2])) / 8)


def test_a_reward_that_needs_the_main_thread_moves_there(
    make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    threads = []

    @reward_settings(in_process=True, batched=True)
    def with_alarm(completions: list[str], **_: Any) -> list[float]:
        threads.append(threading.current_thread() is threading.main_thread())
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        return [float(len(text)) for text in completions]

    trainer = make_trainer(reward_funcs=with_alarm, peft_config=LORA, max_steps=3)
    threads.clear()  # the trainer has tried it
    with caplog.at_level("WARNING", logger="grpo_hf.scoring.scored_reward"):
        trainer.train()
    assert threads == [False, True, True, True]  # tried once, then where it works
    said = [
        record.getMessage()
        for record in caplog.records
        if record.name == "grpo_hf.scoring.scored_reward"
    ]
    assert len(said) == 1 and "with_alarm" in said[0] and "main thread" in said[0]


@pytest.mark.parametrize("early", [True, False])
def test_what_needs_a_main_thread_has_one_in_a_worker(
    make_trainer: MakeTrainer, tmp_path: Path, early: bool
) -> None:
    def with_alarm(completions: list[str], **_: Any) -> list[float]:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        return [float(len(text)) for text in completions]

    make_trainer(
        reward_funcs=with_alarm, peft_config=LORA, max_steps=2, early_rewards=early
    ).train()
    assert [row["rewards/with_alarm/judged"] for row in read_metrics(tmp_path / "run")] == [
        1.0,
        1.0,
    ]


def test_they_can_be_kept_on_the_main_thread(make_trainer: MakeTrainer) -> None:
    threads = []

    @reward_settings(in_process=True, batched=True)
    def reward(completions: list[str], **_: Any) -> list[float]:
        threads.append(threading.current_thread() is threading.main_thread())
        return [float(len(text)) for text in completions]

    trainer = make_trainer(reward_funcs=reward, peft_config=LORA, max_steps=2, early_rewards=False)
    threads.clear()  # the trainer has tried it
    trainer.train()
    assert threads == [True, True]
