"""Completions in the two forms that the trainer uses.

Where prompts are texts, completions are texts; where prompts are lists of messages, completions are
lists of messages.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

Completion = str | list[dict[str, Any]]

# As chat templates call a part that is text, and as OpenAI's interface of responses does.
_TEXT_TYPES = ("text", "input_text", "output_text")


def completion_text(completion: Completion) -> str:
    """Return the text that the model wrote: the string itself, or its messages, one per line.

    >>> completion_text("#### 42")
    '#### 42'
    >>> completion_text([{"role": "assistant", "content": [{"type": "text", "text": "#### 42"}]}])
    '#### 42'
    """
    return "\n".join(message_texts(completion))


def message_texts(completion: Completion) -> list[str]:
    """Return the text of each message of the assistant; a completion that is text is one message.

    Messages of other roles are left out: the model did not write the answer of a tool.
    """
    if isinstance(completion, str):
        return [completion]
    texts = []
    for message in completion:
        if message.get("role") == "assistant":
            texts.append(message_text(message))
    return texts


def last_said(prompt: Any) -> str:
    """Return what a prompt ends with, which tells it from others.

    Where that is the beginning of an answer, all prompts may end alike: what it answers is before.

    >>> begun = {"role": "assistant", "content": "It is"}
    >>> last_said([{"role": "user", "content": "1 + 1?"}, begun])
    '1 + 1?\\nIt is'
    """
    if not isinstance(prompt, Sequence) or isinstance(prompt, str):
        return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)
    messages = [each for each in prompt if isinstance(each, Mapping)]
    is_begun = len(messages) > 1 and messages[-1].get("role") == "assistant"
    return "\n".join(_content(each) for each in messages[-2 if is_begun else -1 :])


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def message_text(message: Mapping[str, Any]) -> str:
    """Return the text of one message, whoever wrote it.

    The content is a text, or a list of parts of which those of text count, joined without a space.
    A message that calls a tool has no content (None, or no such key), and its text is empty:
    neither the call nor what a model thought in a field of its own is text.

    >>> message_text({"content": [{"type": "image"}, {"type": "text", "text": "?"}]})
    '?'
    >>> message_text({"content": None, "tool_calls": [{"name": "search"}]})
    ''
    """
    content = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        return ""
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        # A part without a type is text in some chat formats; images and the like have one.
        elif isinstance(part, Mapping) and part.get("type", "text") in _TEXT_TYPES:
            texts.append(part.get("text") or "")
    return "".join(texts)


def columns_of(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return the columns that a reward may read by name: all but `prompt` and `completion`."""
    columns = {}
    for name in rows[0]:
        # Rewards get these two in their own arguments, `prompts` and `completions`.
        if name not in ("prompt", "completion"):
            columns[name] = [row[name] for row in rows]
    return columns


def as_completions(completions: Sequence[Completion], prompts: Sequence[Any]) -> list[Completion]:
    """Return completions in the form in which the trainer hands them to rewards.

    A text stays a text, unless the prompts are lists of messages: then it becomes a list with one
    message of the assistant. A list of messages stays as it is.
    """
    # All prompts of a dataset have one form, so the first stands for the others.
    if len(prompts) == 0 or isinstance(prompts[0], str):
        return list(completions)
    formed: list[Completion] = []
    for completion in completions:
        if isinstance(completion, str):
            completion = [{"role": "assistant", "content": completion}]
        formed.append(completion)
    return formed
