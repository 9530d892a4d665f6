"""The Monte-Carlo reward: against what `generate` writes, and as what a run learns from."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from datasets import Dataset

from grpo_hf import GRPOTrainer, reward_settings, trl_seam
from grpo_hf.algorithm.advantages import process_advantages
from grpo_hf.errors import ConfigError, RewardSpecError
from grpo_hf.run_context import RunContext, RunTraits
from grpo_hf.scoring.process_reward import attach_policy, process_reward
from grpo_hf.scoring.scored_reward import ScoredReward
from grpo_hf.scoring.steps import step_end_tokens

MakeTrainer = Callable[..., GRPOTrainer]
CHAT = [{"prompt": [{"role": "user", "content": f"{n} + 1"}], "answer": "x" * n} for n in range(8)]
TWICE = [{"prompt": "1 + 1 = ", "answer": "x" * n} for n in (2, 9)]  # one prompt, two answers


@reward_settings(in_process=True)
def vowels(completions: list[Any], answer: list[str], **_: Any) -> list[float | None]:
    """Differs from completion to completion, and needs a column of the data."""
    texts = [text if isinstance(text, str) else text[0]["content"] for text in completions]
    return [
        float(sum(text.count(x) for x in "aeiou")) + len(a)
        for text, a in zip(texts, answer, strict=True)
    ]


@reward_settings(in_process=True)
def gold(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """What is known of the row alone."""
    return [float(len(a)) for a in answer]


@pytest.fixture
def trained(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[GRPOTrainer, list[dict[str, Any]]]]:
    """Return a function that trains for a step under a Monte-Carlo reward.

    It returns the trainer, and for each call of that reward its columns, what it `said`, and what
    was `sampled`: the continuations of each list of tokens. An untrained model writes no lines, so
    steps are words.
    """
    calls: list[dict[str, Any]] = []
    sampled: defaultdict[tuple[int, ...], list[list[int]]] = defaultdict(list)
    score, continue_tokens = ScoredReward.score, trl_seam.continue_tokens

    def watched(
        entry: ScoredReward, completions: Any, columns: Any, begun: Any = None, **how: Any
    ) -> Any:
        said = score(entry, completions, columns, begun, **how)
        if entry.__name__ == "monte_carlo":
            call = {**columns, "completions": completions, "said": said, "sampled": dict(sampled)}
            calls.append(call)
            sampled.clear()
        return said

    def recorded(trainer: GRPOTrainer, asked: list[list[int]], **limits: int) -> list[list[int]]:
        written = continue_tokens(trainer, asked, **limits)
        for ids, more in zip(asked, written, strict=True):
            sampled[tuple(ids)].append(more)
        return written

    def train(
        spec: str = "monte_carlo(n=3, steps=' ')", **settings: Any
    ) -> tuple[GRPOTrainer, list[dict[str, Any]]]:
        usual = {
            "reward_funcs": vowels,
            "max_steps": 1,
            "max_completion_length": 12,
            "reward_weights": [0.0, 1.0],
        }
        trainer = make_trainer(process_reward=spec, **usual | settings)
        # Only now: a trainer tries its rewards where it is made.
        monkeypatch.setattr(ScoredReward, "score", watched)
        monkeypatch.setattr(trl_seam, "continue_tokens", recorded)
        trainer.train()
        return trainer, calls

    return train


@pytest.mark.long
def test_values_are_those_of_continuations(trained: Any) -> None:
    """With top_k 1 all continuations are the greedy one, which `generate` writes as well."""
    trainer, (call, *_) = trained(generation_kwargs={"top_k": 1})
    tokenizer, model = trainer.processing_class, trainer.model
    several = 0
    for prompt, text, ids, answer, outcome in zip(
        call["prompts"],
        call["completions"],
        call["completion_ids"],
        call["answer"],
        call["said"],
        strict=True,
    ):
        asked = tokenizer(prompt)["input_ids"]
        for end, value in zip(outcome.steps.ends[:-1], outcome.steps.rewards[:-1], strict=True):
            written = 1 + step_end_tokens(tokenizer, text, ids, [end])[0]
            if written == len(ids):
                continue
            begun = torch.tensor([asked + ids[:written]])
            with torch.no_grad():
                greedy = model.generate(
                    begun, do_sample=False, max_new_tokens=12 - written, pad_token_id=0
                )
            whole = tokenizer.decode(greedy[0, len(asked) :], skip_special_tokens=True)
            assert value == vowels([whole], [answer])[0]
            several += 1
        assert outcome.steps.rewards[-1] == vowels([text], [answer])[0]
    assert several > 4


@pytest.mark.long
@pytest.mark.parametrize(
    "data", [{}, {"train_dataset": Dataset.from_list(CHAT)}], ids=["text", "chat"]
)
def test_a_value_is_the_mean_over_what_was_sampled(trained: Any, data: dict[str, Any]) -> None:
    trainer, (call, *_) = trained("monte_carlo(n=5, steps=' ')", **data)
    tokenizer = trainer.processing_class
    rows = zip(
        call["prompts"],
        call["completions"],
        call["completion_ids"],
        call["answer"],
        call["said"],
        strict=True,
    )
    spread = 0
    for prompt, completion, ids, answer, outcome in rows:
        if data:
            asked = tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
        else:
            asked = tokenizer(prompt)["input_ids"]
        for end, value in zip(outcome.steps.ends[:-1], outcome.steps.rewards[:-1], strict=True):
            begun = ids[: 1 + step_end_tokens(tokenizer, completion, ids, [end])[0]]
            if len(begun) == len(ids):
                continue
            more = call["sampled"][(*asked, *begun)]
            texts = [
                tokenizer.decode([*begun, *ids][:12], skip_special_tokens=True) for ids in more
            ]
            earned = vowels(texts, [answer] * 5)
            assert value == pytest.approx(sum(earned) / 5)
            spread += len(set(earned)) > 1
        assert outcome.steps.rewards[-1] == vowels([completion], [answer])[0]
    assert spread > 4


@pytest.mark.parametrize("credit", ["value", "gain"])
def test_equal_prompts_with_other_answers_are_other_groups(trained: Any, credit: str) -> None:
    """Greedy, so that all completions begin alike: this model writes nothing but "+"."""
    spec = f"monte_carlo(n=2, steps='+', credit={credit!r})"
    data = {"train_dataset": Dataset.from_list(TWICE), "reward_funcs": gold}
    trainer, (call, *_) = trained(spec, generation_kwargs={"top_k": 1}, **data)
    assert (
        len(set(call["prompts"])) == len(set(call["completions"])) == 1
        and len(set(call["answer"])) == 2
    )
    for answer, outcome in zip(call["answer"], call["said"], strict=True):
        assert len(outcome.steps.rewards) > 1
        assert set(outcome.steps.rewards) == {float(len(answer)) if credit == "value" else 0.0}
    inner = len(call["said"][0].steps.ends) - 1
    assert trainer.state.log_history[0]["monte_carlo/beginnings"] == 2 * inner


class SecondProcess(RunContext):
    """The second of two processes, with what the first one has to gather."""

    elsewhere = (5.0, 0.0, 2.0, 7.0, 30.0, float("nan"))

    @property
    def rank(self) -> int:
        return 1

    def gather_list(self, values: list[Any]) -> list[Any]:
        return [*self.elsewhere, *values]


def test_a_group_that_processes_share_has_one_baseline(make_trainer: MakeTrainer) -> None:
    """The second of two processes, with 6 rows each: half of group 1, and group 2."""
    trainer = make_trainer(
        reward_funcs=vowels, process_reward="monte_carlo(n=2, steps=' ', credit='gain')"
    )
    run = SecondProcess(trainer.accelerator, group_size=4, training=True, step=0)
    policy = replace(trl_seam.policy_of(trainer), context=lambda: run)
    entries = trainer.run_rewards.entries_for(trainer.reward_funcs)
    attach_policy(entries, policy, RunTraits())
    texts, answer = (
        ["ab cd", "i o u", "a e i", "b c", "ou", "x ae"],
        ["x", "x", "yy", "yy", "yy", "yy"],
    )
    ids = [trainer.processing_class(text)["input_ids"] for text in texts]
    rows = {
        "prompts": ["1 + 1 = "] * 6,
        "completions": texts,
        "completion_ids": ids,
        "answer": answer,
    }
    own = vowels(texts, answer)
    assert entries[0](**rows) == own
    trainer.model.train()
    outcomes = entries[-1].score(texts, {**rows, "first_values": own})
    means = [(30.0 + own[0] + own[1]) / 3] * 2 + [sum(own[2:]) / 4] * 4
    for outcome, reward, mean in zip(outcomes, own, means, strict=True):
        assert sum(outcome.steps.rewards) == pytest.approx(reward - mean)


def test_the_values_become_the_advantages(trained: Any) -> None:
    trainer, (call, *_) = trained()
    row = trainer.state.log_history[0]
    steps = [outcome.steps for outcome in call["said"]]
    assert row["rewards/monte_carlo/steps"] == pytest.approx(
        sum(len(s.ends) for s in steps) / len(steps)
    )
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


def test_only_groups_of_different_rewards_are_continued(trained: Any) -> None:
    """The two groups of a rollout: in the first all earn the same, in the second they do not."""

    @reward_settings(in_process=True)
    def half(completions: list[Any], **_: Any) -> list[float]:
        """Return equal rewards for the first group, and others for the second."""
        return [1.0 if row < 4 else float(row % 2) for row in range(len(completions))]

    spec = "monte_carlo(n=2, steps=' ', groups='mixed')"
    trainer, (call, *_) = trained(spec, reward_funcs=half)
    assert all(outcome.steps is None for outcome in call["said"][:4])
    begun = set()
    tokenizer = trainer.processing_class
    for row in range(4, 8):
        text, ids = call["completions"][row], call["completion_ids"][row]
        steps = call["said"][row].steps
        assert steps.rewards[-1] == row % 2
        for end in step_end_tokens(tokenizer, text, ids, steps.ends[:-1]):
            if end + 1 < len(ids):
                prompt = tokenizer(call["prompts"][row])["input_ids"]
                begun.add((*prompt, *ids[: end + 1]))
    assert begun and call["sampled"].keys() == begun
    advantages = list(trainer._logs["advantages"])
    assert advantages[:4] == [0.0] * 4
    assert any(advantages[4:])


def test_the_cost_is_logged_and_shared_beginnings_are_paid_once(trained: Any) -> None:
    trainer, (call, *_) = trained("monte_carlo(n=5, steps=' ')")
    row = trainer.state.log_history[0]
    begun = {
        (prompt, text[:end])
        for prompt, text, outcome in zip(
            call["prompts"], call["completions"], call["said"], strict=True
        )
        for end in outcome.steps.ends[:-1]
    }
    assert row["monte_carlo/beginnings"] == len(begun)
    assert len(begun) * 5 <= row["monte_carlo/tokens"] <= len(begun) * 5 * 12
    assert row["monte_carlo/time"] > 0


def test_the_first_reward_keeps_its_own_metrics(trained: Any) -> None:
    trainer, (call, *_) = trained(reward_weights=[1.0, 0.5])
    row = trainer.state.log_history[0]
    assert row["rewards/vowels/mean"] == pytest.approx(
        sum(vowels(call["completions"], call["answer"])) / 8
    )
    means = [sum(o.steps.rewards) / len(o.steps.rewards) for o in call["said"]]
    assert row["rewards/monte_carlo/mean"] == pytest.approx(sum(means) / 8)


@pytest.mark.long
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
        ("monte_carlo(credit='gains')", "Did you mean 'gain'"),
        ("monte_carlo(groups='mixd')", "Did you mean 'mixed'"),
        ("monte_carlo(steps='line')", "Did you mean 'lines'"),
        ("monte_carlo(m=4)", "no option 'm'"),
        ("monte_carlo(4)", "cannot be read"),
    ],
)
def test_specs_that_make_no_sense_are_refused(spec: str, problem: str) -> None:
    with pytest.raises(RewardSpecError, match=problem):
        process_reward(spec)


@pytest.mark.parametrize(
    ("trait", "problem"),
    [
        ("samples_together", "--vllm_sync adapter"),
        ("sharded_weights", "vLLM"),
        ("has_tools", "tools"),
        ("has_rollout_function", "tools"),
        ("reads_images", "tools"),
    ],
)
def test_a_policy_that_cannot_sample_freely_is_refused(
    make_trainer: MakeTrainer, trait: str, problem: str
) -> None:
    trainer = make_trainer(process_reward="monte_carlo")
    entries = trainer.run_rewards.entries_for(trainer.reward_funcs)
    with pytest.raises(ConfigError, match=problem):
        attach_policy(entries, trl_seam.policy_of(trainer), RunTraits(**{trait: True}))


def test_a_rollout_function_is_refused_before_training(
    make_trainer: MakeTrainer, monkeypatch: Any
) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    with pytest.raises(ConfigError, match="rollout"):
        make_trainer(process_reward="monte_carlo", rollout_func=lambda prompts, trainer: {})
