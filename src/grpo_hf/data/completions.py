"""Completions in the two forms that the trainer uses.

Where prompts are texts, completions are texts; where prompts are lists of messages, completions are
lists of messages.
"""

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

    Messages of other roles are left out: the model did not write the answer of a tool.
    """
    if isinstance(completion, str):
        return [completion]
    texts = []
    for message in completion:
        if message.get("role") == "assistant":
            texts.append(_content_text(message))
    return texts


def _content_text(message: dict[str, Any]) -> str:
    # The content is None where the message is the call of a tool.
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    texts = []
    for part in content:
        # A part without a type is text in some chat formats; images and the like have one.
        if part.get("type", "text") == "text":
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


def as_completions(texts: Sequence[str], prompts: Sequence[Any]) -> list[Any]:
    """Return texts in the form in which the trainer hands completions to rewards.

    A text stays a text, unless the prompts are lists of messages: then it becomes a list with one
    message of the assistant.
    """
    # All prompts of a dataset have one form, so the first stands for the others.
    if len(prompts) == 0 or isinstance(prompts[0], str):
        return list(texts)
    completions = []
    for text in texts:
        completions.append([{"role": "assistant", "content": text}])
    return completions
