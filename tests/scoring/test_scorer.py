"""Rewards as the trainer calls them: loaded, called with what they read, and apart in failure."""

import asyncio
import threading
from pathlib import Path

import pytest
import torch
from trl.trainer.utils import get_callable_name, is_async_callable

from grpo_hf import reward_settings
from grpo_hf.errors import ConfigError, RewardNotFound, RewardSpecError
from grpo_hf.scoring.registry import load_reward
from grpo_hf.scoring.run_rewards import scored_rewards
from grpo_hf.scoring.scorer import RolloutScorer, scorer_under_way, weights_at
from grpo_hf.scoring.signature import checked_reward


def vowels(completions, *, scale=1.0, **columns):
    return [scale * sum(text.count(letter) for letter in "aeiou") for text in completions]


async def awaited_vowels(completions, **columns):
    await asyncio.sleep(0)
    return [float(len(text)) if text else None for text in completions]


def test_a_reward_is_called_with_its_columns():
    (reward,) = scored_rewards(vowels)
    assert reward(
        prompts=["?", "?"], completions=["aeb", "b"], completion_ids=[[1], [2]], answer=[1, 2]
    ) == [2.0, 0.0]


def test_an_async_reward_is_a_plain_call_for_trl():
    (reward,) = scored_rewards([awaited_vowels])
    assert reward(prompts=["?"] * 2, completions=["abc", ""], completion_ids=[[1], []]) == [
        3.0,
        None,
    ]


def test_one_completion_s_failure_is_its_own():
    def picky(completions, **columns):
        return [1 / len(text) for text in completions]

    (reward,) = scored_rewards(picky)
    outcomes = reward.score(["a", "", "bb"], {})
    assert [outcome.value for outcome in outcomes] == [1.0, None, 0.5]
    assert [outcome.failure and outcome.failure.summary for outcome in outcomes] == [
        None,
        "ZeroDivisionError: division by zero",
        None,
    ]


def test_a_reward_that_compares_completions_gets_all_of_them():
    @reward_settings(batched=True)
    def rank(completions, **columns):
        return [float(sorted(completions).index(text)) for text in completions]

    (reward,) = scored_rewards(rank)
    assert reward(completions=["c", "a", "b"]) == [2.0, 0.0, 1.0]


def test_values_are_clipped():
    (reward,) = scored_rewards(load_reward("overlong(max_length=10, cache=10, clip=[-0.5, 0])"))
    assert reward(completions=["", "", ""], completion_ids=[[], [1] * 4, [1] * 99]) == [
        0.0,
        -0.4,
        -0.5,
    ]


@pytest.mark.parametrize(
    "setting",
    [
        "timeout=0",
        "timeout='soon'",
        "weight='cosine(0, 1, steps=2)'",
        "weight='linear(0, 1, steps=0)'",
        "weight=True",
        "clip=1",
        "clip=[1, 0]",
        "clip=[0, 1, 2]",
        "batched=2",
        "concurrency=0",
    ],
)
def test_impossible_settings_say_what_came(setting: str):
    name = setting.partition("=")[0]
    with pytest.raises(RewardSpecError, match=f"reward 'gsm8k': {name} is .*; expected "):
        load_reward(f"gsm8k({setting})")


def test_weights_move_along_their_schedule():
    rewards = scored_rewards(
        [load_reward("gsm8k(weight='linear(0, 2, steps=100)')"), load_reward("overlong"), vowels]
    )
    assert [weights_at(rewards, None, step) for step in (0, 50, 100, 500)] == [
        [0.0, 1.0, 1.0],
        [1.0, 1.0, 1.0],
        [2.0, 1.0, 1.0],
        [2.0, 1.0, 1.0],
    ]
    assert weights_at(scored_rewards(vowels), [0.5], 3) is None
    with pytest.raises(ConfigError, match="reward_weights is given and gsm8k"):
        weights_at(rewards, [1.0, 1.0, 1.0], 0)


def test_a_function_s_own_option_wins_over_a_setting_of_that_name():
    def patient(completions, *, timeout=3.0, **columns):
        return [timeout for _ in completions]

    reward = checked_reward(patient, "patient", "patient", {"timeout": 7.0}, "here")
    assert (reward(completions=["a"]), reward.settings.timeout) == ([7.0], None)


def test_trl_sees_the_reward_s_own_name_and_kind():
    rewards = scored_rewards([vowels, awaited_vowels, "gsm8k", "overlong(cache=4)"])
    assert [get_callable_name(reward) for reward in rewards] == [
        "vowels",
        "awaited_vowels",
        "gsm8k",
        "overlong",
    ]
    assert not any(map(is_async_callable, rewards))  # its event loop is ours


def test_the_caller_s_list_is_left_alone():
    given = [vowels, "gsm8k"]
    scored_rewards(given)
    assert given == [vowels, "gsm8k"]
    assert scored_rewards(None) is None
    assert scored_rewards([]) == []


def test_reward_models_pass_through(tmp_path: Path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for model in (
        torch.nn.Linear(2, 1),
        "org/reward-model_v1.5",
        str(tmp_path / "model"),
        "model",
        "./model",
    ):
        assert scored_rewards(model) == [model]


def test_a_reward_s_name_is_not_taken_for_a_folder_of_the_same_name(tmp_path: Path, monkeypatch):
    (tmp_path / "gsm8k").mkdir()  # GSM8K's own data, say
    monkeypatch.chdir(tmp_path)
    (reward,) = scored_rewards("gsm8k")
    assert get_callable_name(reward) == "gsm8k"


def test_files_and_long_options_are_not_taken_for_models(tmp_path: Path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "def fixed(completions, *, text='', **columns):\n    return [len(text)]\n"
    )
    monkeypatch.chdir(tmp_path)
    for spec in ("./mine.py:fixed", "mine.py:fixed", f"mine.py:fixed(text={'x' * 5000!r})"):
        (reward,) = scored_rewards(spec)
        assert get_callable_name(reward) == "fixed"
    with pytest.raises(RewardNotFound, match=r"other\.py"):
        scored_rewards("./other.py:fixed")


class TestRolloutScorer:
    """The scoring of one rollout, which may begin before TRL asks for it."""

    ROWS = ({"prompt": "?", "answer": "1"}, {"prompt": "!", "answer": "2"})
    COMPLETIONS = ("one", "three")

    @pytest.fixture
    def threads(self):
        """The names of the threads in which the reward of `scorer` was called, in order."""
        return []

    @pytest.fixture
    def scorer(self, threads):
        @reward_settings(in_process=True, batched=True)
        def lengths(completions, answer, log_extra, log_metric, **columns):
            threads.append(threading.current_thread().name)
            log_extra("right", answer)
            log_metric("calls", len(threads))
            return [float(len(text)) for text in completions]

        self.model = torch.nn.Linear(2, 1)
        return RolloutScorer([self.model, *scored_rewards(lengths)], self.ROWS)

    def columns(self):
        """What TRL passes beside the completions."""
        return {
            "prompts": ["?", "!"],
            "completion_ids": [[1], [2, 3]],
            "answer": ["1", "2"],
            "trainer_state": None,
        }

    def asked(self, scorer, completions, columns):
        """What the reward returns when TRL asks for it, and what it has logged."""
        model, function = scorer.functions()
        assert model is self.model and get_callable_name(function) == "lengths"
        extras, metrics = {}, {}
        values = function(
            completions=completions,
            log_extra=extras.__setitem__,
            log_metric=metrics.__setitem__,
            **columns,
        )
        return values, extras, metrics

    def test_it_scores_when_asked(self, scorer, threads):
        assert scorer.scores.entries == scorer.scores.outcomes == {}
        values, extras, metrics = self.asked(scorer, list(self.COMPLETIONS), self.columns())
        assert (values, extras, metrics) == ([3.0, 5.0], {"right": ["1", "2"]}, {"calls": 1.0})
        assert threads == [threading.current_thread().name]
        scores = scorer.scores
        assert list(scores.entries) == list(scores.outcomes) == [1]
        assert scores.completions == list(self.COMPLETIONS)
        assert [outcome.value for outcome in scores.outcomes[1]] == values

    def test_what_has_begun_is_collected(self, scorer, threads):
        completions = list(self.COMPLETIONS)
        scorer.begin(completions, self.columns(), torch.device("cpu"))
        assert scorer.scores.outcomes == {}
        values, extras, metrics = self.asked(scorer, completions, self.columns())
        assert (values, extras, metrics) == ([3.0, 5.0], {"right": ["1", "2"]}, {"calls": 1.0})
        assert threads == ["rewards"]
        assert [outcome.value for outcome in scorer.scores.outcomes[1]] == values

    @pytest.mark.parametrize(("device", "chosen"), [("cuda", 3), ("cuda:1", 1)])
    def test_the_thread_uses_the_trainer_s_device(
        self, scorer, threads, device, chosen, monkeypatch
    ):
        # accelerate's device has no number in a single process, and `set_device` wants one.
        used = []
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
        monkeypatch.setattr(torch.cuda, "set_device", lambda given: used.append(given))
        completions = list(self.COMPLETIONS)
        scorer.begin(completions, self.columns(), torch.device(device))
        values, _, _ = self.asked(scorer, completions, self.columns())
        assert values == [3.0, 5.0] and threads == ["rewards"]
        assert used == [chosen]

    @pytest.mark.parametrize("changed", ["completions", "completion_ids", "answer"])
    def test_what_has_changed_since_is_scored_anew(self, scorer, threads, changed):
        completions = list(self.COMPLETIONS)
        columns = self.columns()
        scorer.begin(completions, columns, torch.device("cpu"))
        later = self.columns()
        if changed == "completions":
            completions[1] = "seven"
        elif changed == "completion_ids":
            later["completion_ids"][1] = [2]
        else:
            later["answer"] = ["1", "7"]
        values, extras, _ = self.asked(scorer, completions, later)
        assert values == [3.0, 5.0] and extras == {"right": later["answer"]}
        assert threading.current_thread().name in threads

    def test_it_is_found_while_the_rollout_is_made(self, scorer):
        with scorer.under_way():
            assert scorer_under_way() is scorer
        assert scorer_under_way() is None
