"""Monte-Carlo step values: against continuations that `generate` writes, and as what a run learns from."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo_hf import GRPOTrainer, reward_settings
from grpo_hf.advantages import process_advantages
from grpo_hf.config import GRPOConfig
from grpo_hf.errors import ConfigError, RewardSpecError
from grpo_hf.monte_carlo import process_reward
from grpo_hf.steps import step_end_tokens

MakeTrainer = Callable[..., GRPOTrainer]
SPACE = " "  # an untrained model writes no lines


@reward_settings(in_process=True)
def vowels(completions: list[Any], answer: list[str], **_: Any) -> list[float | None]:
    """Differs from completion to completion, and needs a column of the data."""
    texts = [text if isinstance(text, str) else text[0]["content"] for text in completions]
    return [float(sum(text.count(x) for x in "aeiou")) + len(a) for text, a in zip(texts, answer, strict=True)]


@pytest.fixture
def trained(make_trainer: MakeTrainer) -> Callable[..., tuple[GRPOTrainer, list[dict[str, Any]]]]:
    """A trainer after a step under a Monte-Carlo reward, and what that reward was called with and said."""

    def train(spec: str = "monte_carlo(n=3, steps=' ')", **settings: Any) -> tuple[GRPOTrainer, list[dict[str, Any]]]:
        settings = {"max_steps": 1, "max_completion_length": 12, "reward_weights": [0.0, 1.0]} | settings
        trainer = make_trainer(reward_funcs=vowels, process_reward=spec, **settings)
        entry, calls = trainer.reward_funcs[-1], []
        call = entry._call

        def watched(taken: dict[str, Any], shared: dict[str, Any], count: int) -> Any:
            calls.append({**taken, "said": call(taken, shared, count)})
            return calls[-1]["said"]

        entry._call = watched
        trainer.train()
        return trainer, calls

    return train


def test_values_are_those_of_continuations(trained: Any) -> None:
    """With next to no temperature all continuations are the greedy one, which `generate` writes as well."""
    trainer, (call, *_) = trained(generation_kwargs={"top_k": 1})
    tokenizer, model = trainer.processing_class, trainer.model
    several = 0
    for prompt, text, ids, answer, outcome in zip(
        call["prompts"], call["completions"], call["completion_ids"], call["answer"], call["said"], strict=True
    ):
        asked = tokenizer(prompt)["input_ids"]
        for end, value in zip(outcome.steps.ends[:-1], outcome.steps.rewards[:-1], strict=True):
            written = 1 + step_end_tokens(tokenizer, text, ids, [end])[0]
            if written == len(ids):
                continue
            begun = torch.tensor([asked + ids[:written]])
            with torch.no_grad():
                greedy = model.generate(begun, do_sample=False, max_new_tokens=12 - written, pad_token_id=0)
            whole = tokenizer.decode(greedy[0, len(asked) :], skip_special_tokens=True)
            assert value == vowels([whole], [answer])[0]
            several += 1
        assert outcome.steps.rewards[-1] == vowels([text], [answer])[0]
    assert several > 4


def test_the_values_become_the_advantages(trained: Any) -> None:
    trainer, (call, *_) = trained()
    row = trainer.state.log_history[0]
    steps = [outcome.steps for outcome in call["said"]]
    assert row["rewards/monte_carlo/steps"] == pytest.approx(sum(len(s.ends) for s in steps) / len(steps))
    lengths = [len(ids) for ids in call["completion_ids"]]
    rows = zip(call["completions"], call["completion_ids"], steps, strict=True)
    ends = [step_end_tokens(trainer.processing_class, text, ids, s.ends) for text, ids, s in rows]
    expected = process_advantages([s.rewards for s in steps], ends, lengths, 4)
    shown = [a[:n].mean().item() for a, n in zip(expected, lengths, strict=True)]
    assert list(trainer._logs["advantages"]) == pytest.approx(shown, abs=1e-4)
    assert max(map(abs, shown)) > 0.1


def test_gains_add_up_to_the_reward(trained: Any) -> None:
    _, (call, *_) = trained("monte_carlo(n=2, steps=' ', credit='gain')")
    final = [o.steps.rewards for o in call["said"]]
    own = vowels(call["completions"], call["answer"])
    for start in (0, 4):
        mean = sum(own[start : start + 4]) / 4
        for gains, reward in zip(final[start : start + 4], own[start : start + 4], strict=True):
            assert sum(gains) == pytest.approx(reward - mean)


def test_the_cost_is_logged_and_shared_beginnings_are_paid_once(trained: Any) -> None:
    trainer, (call, *_) = trained("monte_carlo(n=5, steps=' ')")
    row = trainer.state.log_history[0]
    begun = {
        (prompt, text[:end])
        for prompt, text, outcome in zip(call["prompts"], call["completions"], call["said"], strict=True)
        for end in outcome.steps.ends[:-1]
    }
    assert row["monte_carlo/beginnings"] == len(begun)
    assert len(begun) * 5 <= row["monte_carlo/tokens"] <= len(begun) * 5 * 12
    assert row["monte_carlo/time"] > 0


def test_messages_and_the_first_reward_s_own_metrics(trained: Any, tiny_checkpoint: Path) -> None:
    from datasets import Dataset

    rows = [{"prompt": [{"role": "user", "content": f"{n} + 1"}], "answer": "x" * n} for n in range(8)]
    trainer, (call, *_) = trained(train_dataset=Dataset.from_list(rows), reward_weights=[1.0, 0.5])
    row = trainer.state.log_history[0]
    assert row["rewards/vowels/mean"] == pytest.approx(sum(vowels(call["completions"], call["answer"])) / 8)
    assert math.isfinite(row["rewards/monte_carlo/mean"])


def test_it_trains(trained: Any) -> None:
    trainer, calls = trained(
        max_steps=3, num_iterations=2, gradient_accumulation_steps=2, per_device_train_batch_size=4
    )
    assert len(calls) == 2
    assert all(row["grad_norm"] > 0 for row in trainer.state.log_history if "grad_norm" in row)


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("monte_karlo", "Did you mean 'monte_carlo'"),
        ("monte_carlo(n=0)", "n of at least 1"),
        ("monte_carlo(n=True)", "n of at least 1"),
        ("monte_carlo(steps='')", "steps"),
        ("monte_carlo(credit='none')", "credit"),
        ("monte_carlo(m=4)", "no option 'm'"),
        ("monte_carlo(4)", "cannot be read"),
    ],
)
def test_specs_that_make_no_sense_are_refused(spec: str, problem: str) -> None:
    with pytest.raises(RewardSpecError, match=problem):
        process_reward(spec)


def test_a_trainer_that_cannot_sample_freely_is_refused(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(process_reward="monte_carlo")
    trainer.use_vllm = True
    with pytest.raises(ConfigError, match="vLLM"):
        trainer.reward_funcs[-1].reward.function.attach(trainer)
    assert isinstance(trainer.args, GRPOConfig)
