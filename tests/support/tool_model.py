"""A model that has learnt a few conversations by heart, in which it calls Python."""

from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from grpo_hf.demo.tiny_model import tiny_config, tiny_tokenizer

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
    "{% for c in m['tool_calls'] or [] %}<|call|>{{ c['function'] | tojson }}<|called|>{% endfor %}"
    "{% if m['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
READ_BY = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|assistant|>",
    "fields": {
        "tool_calls": {
            "open": "<|call|>",
            "close": "<|called|>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close": "<|end|>", "content": "text"},
    },
}


def calls(code: str, name: str = "python") -> dict[str, Any]:
    """Return the turn in which the model runs a program."""
    function = {"name": name, "arguments": {"code": code}}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": function}],
    }


def returns(text: str, name: str = "python") -> dict[str, Any]:
    return {"role": "tool", "name": name, "content": text}


def says(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def asks(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


CONVERSATIONS = [
    [asks("What is 2 + 3?"), calls("print(2 + 3)"), returns("5"), says("#### 5")],
    [
        asks("What is 7 / 0?"),
        calls("print(7 / 0)"),
        returns("ZeroDivisionError: division by zero"),
        calls("print(0)"),
        returns("0"),
        says("#### 0"),
    ],
    [asks("Hi"), says("Hello!")],
    [asks("And?"), calls("x", "other"), returns("{'error': 'Tool other not found.'}", "other")],
]


def tool_tokenizer() -> PreTrainedTokenizerBase:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|call|>", "<|called|>", "<|tool|>"]}
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.response_template = READ_BY
    return tokenizer


def tool_model(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """Train the embedded model on the conversations until it knows them."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_config(tokenizer))
    rows = tokenizer.apply_chat_template(
        CONVERSATIONS, return_dict=True, padding=True, return_tensors="pt"
    )
    labels = rows["input_ids"].masked_fill(rows["attention_mask"] == 0, -100)
    # Nobody can know what is asked, so only what follows is learnt.
    for row, (question, *_) in zip(labels, CONVERSATIONS, strict=True):
        asked = tokenizer.apply_chat_template([question], add_generation_prompt=True)
        row[: len(asked["input_ids"])] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    while True:
        loss = model(**rows, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss < 0.01:
            break
    return model.eval()
