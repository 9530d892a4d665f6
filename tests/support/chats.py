"""Prompts in every shape of a chat, and a tokenizer with the chat template of a real model."""

from pathlib import Path
from typing import Any

import trl
from transformers import PreTrainedTokenizerBase

from grpo_hf.demo.tiny_model import tiny_tokenizer

# TRL's package holds the chat templates of the models that it knows.
_TEMPLATES = Path(trl.__file__).parent / "chat_templates"
TEMPLATES = [
    "qwen2_5",
    "qwen3",
    "qwen3_instruct_2507",
    "llama3",
    "llama3_1",
    "llama3_2",
    "gemma",
    "gemma3",
    "phi3",
    "deepseek_r1_distill",
    "glm4moe",
    "lfm2",
    "cohere2",
    "gptoss",
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer_with(template: str, *special: str) -> PreTrainedTokenizerBase:
    """Return the embedded model's tokenizer with another chat template, and more special tokens."""
    tokenizer = tiny_tokenizer()
    file = _TEMPLATES / f"{template}.jinja"
    tokenizer.chat_template = CHATML if template == "chatml" else file.read_text(encoding="utf-8")
    # Some templates write it, and the embedded model's tokenizer has none.
    tokenizer.add_special_tokens({"bos_token": "<|pad|>"})
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return tokenizer


USER = {"role": "user", "content": "What is 2 + 3?"}
SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": [3]}}}
OTHER_CALL = {"type": "function", "function": {"name": "now", "arguments": {"zone": "UTC"}}}
RESULT = {"role": "tool", "name": "add", "content": "5"}


def _answer(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


SHAPES: dict[str, list[dict[str, Any]]] = {
    "user": [USER],
    "system": [SYSTEM, USER],
    "empty system": [{"role": "system", "content": ""}, USER],
    "several turns": [SYSTEM, USER, _answer("5."), {"role": "user", "content": "And 2 + 4?"}],
    "call, content null": [USER, _answer(None, tool_calls=[CALL]), RESULT],
    "call, content empty": [SYSTEM, USER, _answer("", tool_calls=[OTHER_CALL]), RESULT],
    "call, content text": [USER, _answer("I add.", tool_calls=[CALL]), RESULT, USER],
    "two calls": [
        USER,
        _answer(None, tool_calls=[CALL]),
        RESULT,
        _answer(None, tool_calls=[OTHER_CALL]),
        {"role": "tool", "name": "now", "content": '{"hour": 7}'},
    ],
    "empty result": [USER, _answer(None, tool_calls=[CALL]), {**RESULT, "content": ""}],
    "call at the end": [USER, _answer(None, tool_calls=[CALL])],
    "system at the end": [USER, _answer("5."), {"role": "system", "content": "Now in French."}],
    "system alone": [SYSTEM],
    "reasoning": [USER, _answer("5.", reasoning_content="2 + 3 = 5"), USER],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "What is 2 + 3?"}]}],
    "names": [{**USER, "name": "Anna"}, _answer("5."), {**USER, "name": "Bob"}],
    "beginning": [USER, _answer("Let me think.\n<think>")],
    "beginning with a blank": [SYSTEM, USER, _answer("The answer is ")],
    "beginning after a result": [USER, _answer(None, tool_calls=[CALL]), RESULT, _answer("It is")],
    "beginning in parts": [USER, _answer([{"type": "text", "text": "It is"}])],
}
