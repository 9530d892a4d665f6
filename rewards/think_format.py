"""Pay for thinking before answering, in the tags of DeepSeek-R1, right or wrong.

Source: DeepSeek-R1 (arXiv 2501.12948), table 1.
"""

import re
from typing import Any

from grpo_hf.data.completions import Completion, completion_text
from grpo_hf.rewards._options import check_flag
from grpo_hf.scoring.reward import reward_settings

_THINK_TAGS = ("<think>", "</think>")
_ANSWER_TAGS = ("<answer>", "</answer>")
_THINK_THEN_TEXT = re.compile(r"<think>(.*)</think>(.*)", re.DOTALL)
_THINK_THEN_ANSWER = re.compile(r"<think>(.*)</think>\s*<answer>(.*)</answer>", re.DOTALL)


def _check_options(answer_tags: bool, opened: bool) -> None:
    check_flag("think_format", "answer_tags", answer_tags)
    check_flag("think_format", "opened", opened)


@reward_settings(in_process=True, check=_check_options)
def think_format(
    completions: list[Completion], *, answer_tags: bool = True, opened: bool = False, **columns: Any
) -> list[float | None]:
    """Return 1.0 for `<think>...</think>` followed by an answer, else 0.0.

    Each tag must occur once, neither part may be empty, and nothing else may stand around them.

    Args:
        completions: texts, or lists of messages.
        answer_tags: the answer stands in `<answer>...</answer>`, with only whitespace outside. If
            False, the answer is all that follows `</think>`.
        opened: the chat template writes the opening `<think>` into the prompt, so the completion
            starts after it, and a `<think>` in the completion is one too many.

    Raises:
        RewardSpecError: an option is neither True nor False.

    >>> tagged = "<think>6 * 7</think>\\n<answer>42</answer>"
    >>> think_format([tagged, "<think>6 * 7</think> 42", "<answer>42</answer>"])
    [1.0, 0.0, 0.0]
    >>> untagged = ["6 * 7</think> 42", "<think>6 * 7</think> 42"]
    >>> think_format(untagged, answer_tags=False, opened=True)
    [1.0, 0.0]
    """
    _check_options(answer_tags, opened)
    form = _THINK_THEN_ANSWER if answer_tags else _THINK_THEN_TEXT
    tags = _THINK_TAGS + _ANSWER_TAGS if answer_tags else _THINK_TAGS
    rewards: list[float | None] = []
    for completion in completions:
        text = completion_text(completion).strip()
        if opened:
            text = f"<think>{text}"
        rewards.append(float(_has_form(text, form, tags)))
    return rewards


def _has_form(text: str, form: re.Pattern[str], tags: tuple[str, ...]) -> bool:
    # Tags are counted before the pattern is matched, so that no part can contain a tag and the
    # pattern has only one way to match.
    for tag in tags:
        if text.count(tag) != 1:
            return False
    match = form.fullmatch(text)
    return match is not None and all(map(str.strip, match.groups()))
