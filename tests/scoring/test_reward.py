"""What a reward is: its signature, its options, the columns it needs."""

import asyncio
from functools import partial

import pytest
from support.registry import as_trl_calls, lengths
from trl.trainer.utils import is_async_callable

from grpo_hf.errors import DataError, RewardError, RewardSpecError
from grpo_hf.scoring.registry import load_reward, register_reward
from grpo_hf.scoring.reward import reward_settings
from grpo_hf.scoring.signature import require_columns


class TestOptions:
    @pytest.fixture(autouse=True)
    def _lengths(self):
        register_reward("lengths")(lengths)

    @pytest.mark.parametrize(
        "spec", ["lengths(scale=2)", " lengths ( scale = 2, ) ", {"lengths": {"scale": 2}}]
    )
    def test_text_and_mapping(self, spec):
        reward = load_reward(spec)
        assert as_trl_calls(reward) == [6, 10]
        assert (reward.name, reward.spec, reward.options) == (
            "lengths",
            "lengths(scale=2)",
            {"scale": 2},
        )
        assert load_reward(reward.spec).options == reward.options

    @pytest.mark.parametrize("spec", ["lengths()", {"lengths": None}, {"lengths": {}}])
    def test_none_given(self, spec):
        reward = load_reward(spec)
        assert (reward.spec, as_trl_calls(reward)) == ("lengths", [3.0, 5.0])

    def test_literals_of_any_kind(self):
        @register_reward("echo")
        def echo(completions, *, tags=(), note="", weights=None):
            return [tags, note, weights]

        reward = load_reward(
            """echo(tags=("a(", "b)"), note="x: y()", weights={"a": -1.5, "b": None})"""
        )
        assert reward(completions=[]) == [("a(", "b)"), "x: y()", {"a": -1.5, "b": None}]

    @pytest.mark.parametrize(
        "spec",
        [
            "lengths(2)",
            "lengths(scale=two)",
            "lengths(scale=1, scale=2)",
            "lengths(**{'scale': 2})",
            "lengths(scale)",
            "lengths(scale=2",
            "lengths)",
            "lengths(scale=2)(scale=3)",
        ],
    )
    def test_text_that_is_not_options(self, spec):
        with pytest.raises(RewardError, match="lengths"):
            load_reward(spec)

    def test_values_are_never_evaluated(self, tmp_path):
        target = tmp_path / "created"
        with pytest.raises(RewardSpecError, match="literal"):
            load_reward(f"lengths(scale=open({str(target)!r}, 'w').write('x'))")
        assert not target.exists()

    def test_unknown_option(self):
        with pytest.raises(
            RewardSpecError, match=r"no option 'scal'. Did you mean 'scale'\? Its options: scale"
        ):
            load_reward("lengths(scal=2)")

    def test_a_column_is_not_an_option(self):
        with pytest.raises(RewardSpecError, match=r"no option 'answer'.* Its options: none"):
            load_reward({"gsm8k": {"answer": "42"}})

    def test_what_the_trainer_passes_is_not_an_option(self):
        register_reward("logging")(lambda completions, log_metric=None: [0.0])
        with pytest.raises(RewardSpecError, match="no option 'log_metric'"):
            load_reward("logging(log_metric=1)")

    def test_option_beats_column_of_the_same_name(self):
        assert as_trl_calls(load_reward("lengths(scale=2)"), scale=[100, 100]) == [6, 10]

    @pytest.mark.parametrize(
        "spec", [None, 3, ["lengths"], {}, {"lengths": 2}, {"lengths": {}, "gsm8k": {}}]
    )
    def test_neither_name_nor_function(self, spec):
        with pytest.raises(RewardSpecError, match="expected a function, a name"):
            load_reward(spec)


class TestSignature:
    @pytest.mark.parametrize("spec", ["pathlib:Path", "math:pi", "builtins:max"])
    def test_what_is_no_function(self, spec):
        with pytest.raises(
            RewardSpecError, match=r"expected a function fn\(completions, COLUMN, \*\*columns\)"
        ):
            load_reward(spec)

    def test_async_generators(self):
        async def async_generator(completions):
            yield 1.0

        with pytest.raises(RewardSpecError, match="is an async generator"):
            load_reward(async_generator)

    def test_signature_found_and_expected_are_printed(self):
        def score(prediction, *, scale: float = 1.0):
            return []

        with pytest.raises(RewardSpecError) as caught:
            load_reward(score)
        assert "score(prediction, *, scale: float = 1.0)" in str(caught.value)
        assert "fn(completions, COLUMN, **columns) -> list[float | None]" in str(caught.value)

    def test_completions_by_position_only(self):
        def score(completions, /):
            return []

        with pytest.raises(RewardSpecError, match=r"score\(completions, /\)"):
            load_reward(score)

    @pytest.mark.parametrize(
        "function", [lambda prompt, **columns: [], lambda completion, **columns: []]
    )
    def test_singular_of_what_the_trainer_passes(self, function):
        with pytest.raises(RewardSpecError, match=r"Did you mean (prompts|completions)\?"):
            load_reward(function)


class TestColumns:
    def test_parameters_that_only_the_dataset_can_fill(self):
        def score(
            prompts,
            completions,
            completion_ids,
            answer,
            log_extra,
            hint=None,
            *,
            level,
            limit=3,
            **columns,
        ):
            return []

        assert load_reward(score).columns == ("answer", "level")

    def test_an_option_is_not_a_column(self):
        @register_reward("limited")
        def limited(completions, *, limit):
            return [limit]

        assert load_reward("limited").columns == ("limit",)
        assert load_reward("limited(limit=3)").columns == ()
        assert as_trl_calls(load_reward("limited(limit=3)")) == [3]

    def test_the_column_of_right_answers_is_one_that_it_reads(self):
        @reward_settings(gold="anwser")
        def score(completions, answer, **columns):
            return [1.0 for _ in completions]

        with pytest.raises(RewardSpecError, match=r"gold is 'anwser'.*Did you mean 'answer'"):
            load_reward(score)

    def test_the_column_of_right_answers_is_one_that_it_needs(self):
        @reward_settings(gold="answer")
        def score(completions, answer=None, **columns):
            return [1.0 for _ in completions]

        with pytest.raises(RewardSpecError, match=r"gold is 'answer', which has a default"):
            load_reward(score)

        @reward_settings(gold="answer")
        def fixed(completions, answer, **columns):
            return [1.0 for _ in completions]

        # Who gives one answer for all rows is asked for no column.
        assert load_reward(partial(fixed, answer="4")).columns == ()

    def test_the_column_of_right_answers_is_one(self):
        @reward_settings(gold=["answer"])
        def score(completions, answer, **columns):
            return [1.0 for _ in completions]

        with pytest.raises(RewardSpecError, match=r"gold is \['answer'\]; expected the parameter"):
            load_reward(score)

    def test_function_gets_only_what_it_can_take(self):
        def score(completions, answer):
            return [text == gold for text, gold in zip(completions, answer, strict=True)]

        assert as_trl_calls(load_reward(score), answer=["one", "two"], other=[0, 0]) == [
            True,
            False,
        ]

    def test_function_with_keywords_gets_all(self):
        seen = {}
        as_trl_calls(
            load_reward(lambda completions, **columns: seen.update(columns)), answer=[1, 2]
        )
        assert seen.keys() == {
            "prompts",
            "completion_ids",
            "trainer_state",
            "log_extra",
            "log_metric",
            "answer",
        }


class TestAsync:
    def test_trl_sees_an_async_reward(self):
        @register_reward("referee")
        async def referee(completions, *, mark=1.0):
            await asyncio.sleep(0)
            return [mark] * len(completions)

        reward = load_reward("referee(mark=0.5)")
        assert reward.is_async
        assert is_async_callable(reward)
        assert asyncio.run(as_trl_calls(reward)) == [0.5, 0.5]

    def test_object_with_an_async_call(self):
        class Judge:
            """Asks somebody."""

            async def __call__(self, completions):
                return [1.0]

        reward = load_reward(Judge())
        assert (reward.name, reward.doc) == ("Judge", "Asks somebody.")
        assert is_async_callable(reward)
        assert asyncio.run(as_trl_calls(reward)) == [1.0]

    def test_sync_reward_is_not_async(self):
        reward = load_reward(lengths)
        assert not reward.is_async
        assert not is_async_callable(reward)

    def test_partial_keeps_the_name_of_its_function(self):
        reward = load_reward(partial(lengths, scale=3.0))
        assert (reward.name, reward.doc, as_trl_calls(reward)) == (
            "lengths",
            "Pays for characters.",
            [9.0, 15.0],
        )


def test_columns_that_rewards_need():
    def style(completions): ...
    def length(completions, prompt_length=0): ...

    rewards = [load_reward(reward) for reward in ("gsm8k", style, length)]
    require_columns(rewards, ["question", "answer"], "train.jsonl", "--columns {}=<its name there>")
    expected = (
        r"'gsm8k' needs the column 'answer', which train.jsonl "
        r".*Did you mean 'awnser'.*--columns answer=<its"
    )
    with pytest.raises(DataError, match=expected):
        require_columns(
            rewards, ["question", "awnser"], "train.jsonl", "--columns {}=<its name there>"
        )
