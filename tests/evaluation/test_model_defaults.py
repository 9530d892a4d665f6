"""A model's own sampling defaults change neither rollouts nor the answers of an evaluation."""

import pytest
from peft import LoraConfig
from support.questions import QUESTIONS, one_by_one, varied_model
from transformers import GenerationConfig

from grpo_hf.demo.tiny_model import tiny_tokenizer
from grpo_hf.evaluation.answers import greedy_completions

DEFAULTS = {
    "do_sample": True,
    "temperature": 0.01,
    "top_k": 1,
    "top_p": 0.1,
    "repetition_penalty": 9.0,
}


@pytest.fixture
def model():
    """A model that would write nearly the same every time, each word but once."""
    made = varied_model(tiny_tokenizer())
    made.generation_config = GenerationConfig(
        eos_token_id=made.config.eos_token_id, pad_token_id=made.config.pad_token_id, **DEFAULTS
    )
    return made


def test_greedy_answers_are_the_likeliest_tokens(model):
    tokenizer = tiny_tokenizer()
    expected = one_by_one(model, tokenizer, QUESTIONS, 10)
    found = greedy_completions(model, tokenizer, QUESTIONS, max_new_tokens=10, batch_size=4)
    assert [written.completion for written in found] == expected


@pytest.mark.parametrize("grouped", [True, False])
def test_rollouts_are_drawn_at_the_run_s_temperature(model, make_trainer, grouped):
    lora = LoraConfig(r=2, target_modules="all-linear")
    settings = {"grouped_rollout": grouped, "max_steps": 1, "peft_config": lora}
    trainer = make_trainer(model=model, **settings)
    trainer.train()
    texts = list(trainer._logs["completion"])
    assert len(texts) == len(set(texts)) == 8
