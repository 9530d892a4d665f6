"""Pays for thinking before answering, in the tags of DeepSeek-R1 (arXiv 2501.12948, table 1), right or wrong."""

import re
from typing import Any

from grpo_hf.data.completions import Completion, completion_text
from grpo_hf.scoring.reward import reward_settings

_THINK_TAGS = ("<think>", "</think>")
_ANSWER_TAGS = ("<answer>", "</answer>")
_THINK_THEN_TEXT = re.compile(r"<think>(.*)</think>(.*)", re.DOTALL)
_THINK_THEN_ANSWER = re.compile(r"<think>(.*)</think>\s*<answer>(.*)</answer>", re.DOTALL)


@reward_settings(in_process=True)
def think_format(
    completions: list[Completion], *, answer_tags: bool = True, opened: bool = False, **columns: Any
) -> list[float | None]:
    """1.0 for `<think>...</think>` then an answer, each tag once, neither part empty, nothing else around; else 0.0.

    Args:
        completions: texts, or lists of messages.
        answer_tags: the answer stands in `<answer>...</answer>`, with only whitespace outside; without them it is all
            that follows `</think>`.
        opened: the chat template writes the opening `<think>` into the prompt, so that the completion starts after it
            (and one more `<think>` is one too many).

    >>> think_format(["<think>6 * 7</think>\\n<answer>42</answer>", "<think>6 * 7</think> 42", "<answer>42</answer>"])
    [1.0, 0.0, 0.0]
    >>> think_format(["6 * 7</think> 42", "<think>6 * 7</think> 42"], answer_tags=False, opened=True)
    [1.0, 0.0]
    """
    form = _THINK_THEN_ANSWER if answer_tags else _THINK_THEN_TEXT
    tags = _THINK_TAGS + _ANSWER_TAGS if answer_tags else _THINK_TAGS
    rewards: list[float | None] = []
    for completion in completions:
        text = completion_text(completion).strip()
        text = f"<think>{text}" if opened else text
        # Counted first: then no tag can hide in a part, and the pattern has nothing to search through.
        match = form.fullmatch(text) if all(text.count(tag) == 1 for tag in tags) else None
        rewards.append(float(match is not None and all(part.strip() for part in match.groups())))
    return rewards
