"""The trainer reads prompts as TRL's does, and continues beginnings of answers where asked."""

from copy import deepcopy

import pytest
import trl
from datasets import Dataset
from support.chats import SHAPES, USER, tokenizer_with

from grpo_hf.data.prompts import prompt_token_ids
from grpo_hf.errors import ConfigError

BEGINNING = SHAPES["beginning"]
OPTION = {"continue_final_message": True}


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: the first.
        b: the second.
    """
    return a + b


@pytest.mark.parametrize("shape", SHAPES)
def test_prompts_are_those_of_trl(module_trainer, shape):
    """Without the option every prompt is followed by a new turn, as in TRL."""
    tokenizer = tokenizer_with("qwen2_5")
    trainer = module_trainer(processing_class=tokenizer)
    prompts = [deepcopy(SHAPES[shape])] * 2
    try:
        expected = trl.GRPOTrainer._tokenize_prompts(trainer, prompts)
    except TypeError:
        pytest.skip("the template takes no parts")
    assert trainer._tokenize_prompts(prompts) == expected


def test_beginnings_are_continued_where_asked(make_trainer):
    """TRL's trainer refuses this option in the first step."""
    seen = []

    def length(completions, prompts, **columns):
        seen.extend(prompts)
        return [float(len(completion[0]["content"])) for completion in completions]

    rows = Dataset.from_list([{"prompt": BEGINNING}, {"prompt": [USER]}])
    settings = {"train_dataset": rows, "reward_workers": 0, "max_steps": 1}
    options = {**OPTION, "x": 1}
    trainer = make_trainer(reward_funcs=length, chat_template_kwargs=options, **settings)
    prompts = rows["prompt"][:]
    ids = trainer._tokenize_prompts(prompts)[0]
    assert trainer.processing_class.batch_decode(ids) == [
        "<|user|>What is 2 + 3?<|assistant|>Let me think.\n<think>",
        "<|user|>What is 2 + 3?<|assistant|>",
    ]
    trainer.train()
    assert BEGINNING in seen and [USER] in seen
    # TRL gives the other options to the template elsewhere, too.
    assert trainer.chat_template_kwargs == {"x": 1}
    assert trainer.args.chat_template_kwargs == options


def test_texts_stay_as_they_are(make_trainer):
    trainer = make_trainer(chat_template_kwargs=OPTION)
    texts = ["2 + 2 = ", "<|user|>Hi<|assistant|>So"]
    assert trainer._tokenize_prompts(texts) == trl.GRPOTrainer._tokenize_prompts(trainer, texts)


def test_tools_are_in_a_continued_prompt(make_trainer):
    tokenizer = tokenizer_with("qwen3")
    trainer = make_trainer(processing_class=tokenizer, tools=[add], chat_template_kwargs=OPTION)
    (ids,), images, more = trainer._tokenize_prompts([BEGINNING[:1]])
    expected = trl.GRPOTrainer._tokenize_prompts(trainer, [BEGINNING[:1]])
    assert ([ids], images, more) == expected
    spoken = [USER, {"role": "assistant", "content": "I add"}]
    options = {**OPTION, "tools": [add], "chat_template": trainer.chat_template}
    assert trainer._tokenize_prompts([spoken])[0] == prompt_token_ids([spoken], tokenizer, options)


def test_environments_write_prompts_of_their_own(make_trainer):
    class Echo:
        def reset(self, **row):
            """Begin."""

    with pytest.raises(ConfigError, match=r"continue_final_message.*without environments"):
        make_trainer(
            processing_class=tokenizer_with("qwen3"),
            environment_factory=Echo,
            chat_template_kwargs=OPTION,
        )
