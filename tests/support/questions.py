"""Questions to a small model, its answers by definition, and a reward that marks them."""

from typing import Any

import torch
from transformers import LlamaForCausalLM, set_seed

from grpo_hf.demo.tiny_model import tiny_model

QUESTIONS = [
    "7 + 5?",
    "How many apples does Anna have now, if she had 41 and found 17 more on Tuesday?",
    "Books?",
    "Ben has 3 coins and gets 4 more from Ida. How many coins?",
    "Hugo found 90 shells.",
    "1",
    "Clara has 12 cards and David has 30 cards. How many cards do they have together?",
]
CHATS = [[{"role": "user", "content": question}] for question in QUESTIONS]


def varied_model(tokenizer: Any) -> LlamaForCausalLM:
    """Return a model with varied answers, and with dropout that training mode would switch on."""
    config = tiny_model(tokenizer).config
    config.initializer_range = 0.2
    config.tie_word_embeddings = False
    config.attention_dropout = 0.5
    set_seed(1)
    return LlamaForCausalLM(config).eval()


def one_by_one(model, tokenizer, prompts, max_new_tokens: int) -> list[str]:
    """Return greedy answers by definition: the likeliest token, no batch, padding or cache."""
    answers = []
    for prompt in prompts:
        text = prompt
        if not isinstance(prompt, str):
            text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text)["input_ids"]
        new = []
        while len(new) < max_new_tokens and tokenizer.eos_token_id not in new:
            with torch.no_grad():
                new.append(int(model(torch.tensor([ids + new])).logits[0, -1].argmax()))
        answers.append(tokenizer.decode(new, skip_special_tokens=True))
    return answers


def graded(prompts, completions, completion_ids, answer, **columns):
    """Pay the full mark for an equal answer; some gold answers ask for half, None or a failure."""
    assert len(prompts) == len(completions) == len(completion_ids) == len(answer)
    assert "prompt" not in columns and "completion" not in columns
    texts = [text if isinstance(text, str) else text[0]["content"] for text in completions]
    assert all(isinstance(text, str) or text[0]["role"] == "assistant" for text in completions)
    marks = {"half": 0.5, "unclear": None, "nan": float("nan")}
    rewards = []
    for text, gold in zip(texts, answer, strict=True):
        rewards.append(marks.get(gold, float(text == gold)))
    return rewards
