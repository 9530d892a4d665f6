"""The text of messages of every shape, and that steps are found in the same text."""

from typing import Any

import pytest

from grpo_hf import completion_text, message_text, split_steps
from grpo_hf.demo.tiny_model import tiny_tokenizer
from grpo_hf.scoring.steps import found_steps

CALL = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}]
MESSAGES: dict[str, tuple[dict[str, Any], str]] = {
    "text": ({"content": "1 + 2\n#### 3"}, "1 + 2\n#### 3"),
    "empty": ({"content": ""}, ""),
    "null": ({"content": None}, ""),
    "missing": ({}, ""),
    "call of a tool": ({"content": None, "tool_calls": CALL}, ""),
    "text and call": ({"content": "1 + 2 =", "tool_calls": CALL}, "1 + 2 ="),
    "part": ({"content": [{"type": "text", "text": "3"}]}, "3"),
    "parts": ({"content": [{"type": "text", "text": "1 "}, {"type": "text", "text": "+"}]}, "1 +"),
    "parts of another interface": ({"content": [{"type": "output_text", "text": "3"}]}, "3"),
    "part without a type": ({"content": [{"text": "3"}]}, "3"),
    "part that is text": ({"content": ["1 ", "+"]}, "1 +"),
    "tuple": ({"content": ({"type": "text", "text": "3"},)}, "3"),
    "image": ({"content": [{"type": "image"}, {"type": "text", "text": "3"}]}, "3"),
    "null part": ({"content": [{"type": "text", "text": None}]}, ""),
    "no parts": ({"content": []}, ""),
    "thoughts aside": ({"content": "3", "reasoning_content": "1 + 2 is 3"}, "3"),
    "a number": ({"content": 3}, ""),
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.mark.parametrize("kind", MESSAGES)
def test_the_text_of_a_message(kind: str):
    message, text = MESSAGES[kind]
    for role in ("assistant", "user", "system", "tool"):
        assert message_text({"role": role} | message) == text
    assert completion_text([{"role": "assistant"} | message]) == text


def test_the_text_of_a_completion_is_what_the_assistant_wrote():
    assert completion_text("#### 3") == "#### 3"
    assert completion_text([]) == ""
    turns = [
        {"role": "assistant", "content": "I ask.", "tool_calls": CALL},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": None, "tool_calls": CALL},
        {"role": "tool", "content": [{"type": "text", "text": "3"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "#### 3"}]},
    ]
    assert completion_text(turns) == "I ask.\n\n#### 3"


@pytest.mark.parametrize("first", MESSAGES)
@pytest.mark.parametrize("second", MESSAGES)
def test_steps_are_found_in_the_same_text(first: str, second: str, tokenizer: Any):
    turns = []
    decoded = ""
    for kind in (first, second):
        message, text = MESSAGES[kind]
        turns.append({"role": "assistant"} | message)
        # What a template writes around the text of a message is in the tokens, and not in the text.
        decoded += "(" + text + ")"
    ids = tokenizer(decoded, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == decoded
    ends, tokens = found_steps(tokenizer, turns, ids, "lines")
    text = completion_text(turns)
    assert ends == split_steps(text, "lines")
    assert len(tokens) == len(ends)
    # The last step takes along the end of the turn; the others end with their own last character.
    assert tokens[-1:] == [len(ids) - 1] * bool(tokens)
    for start, end, token in zip([0, *ends], ends[:-1], tokens, strict=False):
        assert text[start:end].strip()[-1] in tokenizer.decode(ids[: token + 1])[-2:]
