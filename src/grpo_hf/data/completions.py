"""Completions as the trainer has them: texts, or lists of messages where prompts are lists of messages."""

from collections.abc import Sequence
from typing import Any

Completion = str | list[dict[str, Any]]


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

    Other roles are left out: what a tool answered was not written by the model.
    """
    if isinstance(completion, str):
        return [completion]
    return [_content_text(message) for message in completion if message.get("role") == "assistant"]


def _content_text(message: dict[str, Any]) -> str:
    content = message.get("content") or ""  # None where the message is the call of a tool
    if isinstance(content, str):
        return content
    texts = [part.get("text") or "" for part in content if part.get("type", "text") == "text"]
    return "".join(texts)


def columns_of(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """The columns of rows that a reward may read by name: all but prompt and completion."""
    return {
        name: [row[name] for row in rows]
        for name in rows[0]
        if name not in ("prompt", "completion")
    }


def as_completions(texts: Sequence[str], prompts: Sequence[Any]) -> list[Any]:
    """Texts as the trainer hands completions of these prompts to rewards: messages, where prompts are."""
    chat = len(prompts) > 0 and not isinstance(prompts[0], str)
    return [[{"role": "assistant", "content": text}] if chat else text for text in texts]
