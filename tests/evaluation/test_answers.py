"""Tests of a model's answers, against a loop without padding, and of which are right."""

import pytest
import torch
from support.questions import CHATS, QUESTIONS, graded, one_by_one, varied_model
from transformers import LlamaForCausalLM, TrainerState

from grpo_hf import GRPOConfig
from grpo_hf.demo.tiny_model import tiny_tokenizer
from grpo_hf.evaluation.answers import (
    greedy_completions,
    greedy_of_run,
    right_answers,
    sampled_completions,
)
from grpo_hf.rollout.sampling import is_cut
from grpo_hf.scoring.registry import load_reward
from grpo_hf.scoring.scored_reward import ScoredReward


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer) -> LlamaForCausalLM:
    return varied_model(tokenizer)


@pytest.mark.parametrize("prompts", [CHATS, QUESTIONS], ids=["chat", "plain"])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_greedy_completions_are_those_of_each_prompt_alone(model, tokenizer, prompts, batch_size):
    expected = one_by_one(model, tokenizer, prompts, 12)
    assert len(set(expected)) == len(prompts), "answers that are alike would not show a wrong order"
    found = greedy_completions(model, tokenizer, prompts, max_new_tokens=12, batch_size=batch_size)
    assert [written.completion for written in found] == expected


@pytest.mark.long
def test_greedy_of_run_has_the_limit_and_the_template_of_a_run(model, tmp_path):
    styled, brief = tiny_tokenizer(), tiny_tokenizer()
    styled.chat_template = "{{ style }}" + styled.chat_template
    brief.chat_template = "brief" + brief.chat_template
    expected = one_by_one(model, brief, CHATS, 9)
    assert expected != one_by_one(model, styled, CHATS, 9), "the template makes no difference"
    args = GRPOConfig(
        output_dir=str(tmp_path),
        max_completion_length=9,
        chat_template_kwargs={"style": "brief"},
        use_cpu=True,
    )
    assert greedy_of_run(model, styled, CHATS, args) == expected
    found = greedy_of_run(model, styled, CHATS, args, max_new_tokens=3)
    assert found == one_by_one(model, brief, CHATS, 3)


@pytest.mark.parametrize(
    ("tokens", "sampling", "expected"),
    [
        ([5, 2], {}, False),
        ([5, 5], {}, True),
        ([], {}, True),
        ([5, 7], {"stop_token_ids": [7]}, False),
        # Whatever ends at a stop string has no token for it.
        ([5], {"stop_strings": ["."]}, False),
        ([5, 5], {"stop_strings": ["."]}, True),
    ],
)
def test_a_completion_without_an_end_was_cut_off(tokens, sampling, expected: bool):
    assert is_cut(tokens, [2], 2, sampling) == expected


@pytest.mark.long
def test_a_completion_ends_at_its_own_end_token(model, tokenizer):
    """Check a batch whose answers have different lengths; what follows an end is not used."""
    ends = LlamaForCausalLM(model.config).eval()
    ends.load_state_dict(model.state_dict())
    with torch.no_grad():
        ends.lm_head.weight[tokenizer.eos_token_id] = (
            1.5 * ends.lm_head.weight[tokenizer.eos_token_id]
        )
    expected = one_by_one(ends, tokenizer, CHATS, 24)
    lengths = {len(tokenizer(text)["input_ids"]) for text in expected}
    assert len(lengths) > 2, lengths
    found = greedy_completions(ends, tokenizer, CHATS, max_new_tokens=24, batch_size=4)
    assert [written.completion for written in found] == expected
    # An end token alone says that a completion is whole: one may end with the last that it has.
    whole = [written.is_cut for written in found].index(False)
    again = []
    for limit in range(1, 25):
        settings = {"max_new_tokens": limit, "batch_size": 4}
        again.append(greedy_completions(ends, tokenizer, [CHATS[whole]], **settings)[0])
    room = [written.is_cut for written in again].index(False)
    assert not any(written.is_cut for written in again[room:])
    assert [written.completion for written in again[room - 1 : room + 1]] == [expected[whole]] * 2


@pytest.mark.parametrize("training", [True, False])
def test_the_model_answers_without_dropout_and_keeps_its_mode(model, tokenizer, training: bool):
    expected = one_by_one(model, tokenizer, CHATS[:3], 8)
    model.train(training)
    try:
        found = greedy_completions(model, tokenizer, CHATS[:3], max_new_tokens=8, batch_size=2)
        assert [written.completion for written in found] == expected
        assert model.training == training
    finally:
        model.eval()


@pytest.mark.long
@pytest.mark.parametrize("batch_size", [1, 4])
def test_samples_are_those_of_each_prompt_and_of_their_seed(model, tokenizer, batch_size):
    settings = {"max_new_tokens": 12, "batch_size": batch_size}
    cold = sampled_completions(
        model, tokenizer, CHATS, 3, sampling={"temperature": 1e-4}, seed=0, **settings
    )
    assert cold == [[text] * 3 for text in one_by_one(model, tokenizer, CHATS, 12)]
    before = torch.random.get_rng_state()
    first = sampled_completions(model, tokenizer, CHATS, 3, sampling={}, seed=1, **settings)
    again = sampled_completions(model, tokenizer, CHATS, 3, sampling={}, seed=1, **settings)
    other = sampled_completions(model, tokenizer, CHATS, 3, sampling={}, seed=2, **settings)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first == again != other
    assert all(len(set(texts)) == 3 for texts in first)


async def graded_later(**columns):
    return graded(**columns)


@pytest.mark.parametrize("reward", [graded, graded_later])
@pytest.mark.parametrize("chat", [True, False])
def test_only_the_full_mark_is_a_right_answer(reward, chat: bool):
    golds = ["4", "5", "half", "unclear", "nan"]
    prompt = CHATS[0] if chat else QUESTIONS[0]
    rows = [{"prompt": prompt, "answer": gold, "completion": "of the dataset"} for gold in golds]
    assert right_answers(ScoredReward(load_reward(reward)), rows, ["4"] * 5) == [
        True,
        False,
        False,
        False,
        None,
    ]


def test_a_reward_may_ask_for_what_the_trainer_passes():
    def curriculum(completions, trainer_state, log_extra, log_metric, **columns):
        log_extra("text", completions)
        log_metric("length", 1.0)
        return [1.0 if trainer_state.global_step == 7 else 0.0 for _ in completions]

    rows = [{"prompt": "?"}] * 2
    state = TrainerState(global_step=7)
    assert right_answers(
        ScoredReward(load_reward(curriculum)), rows, ["a", "b"], trainer_state=state
    ) == [True, True]
