"""Pays for an answer in the agreed form, right or wrong.

The forms are GSM8K's final line `#### n` (arXiv 2110.14168), and the think and answer tags of DeepSeek-R1 (arXiv
2501.12948).
"""

import re
from typing import Any

from grpo_hf.errors import RewardSpecError, did_you_mean
from grpo_hf.rewards._text import Completion, completion_text, parse_number

_FINAL_HASH_LINE = re.compile(r"^[ \t]*#### (.*)\Z", re.MULTILINE)
_THINK_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_THINK_THEN_ANSWER = re.compile(r"<think>(.*)</think>\s*<answer>(.*)</answer>", re.DOTALL)


def answer_format(completions: list[Completion], *, style: str = "hash", **columns: Any) -> list[float | None]:
    r"""1.0 where the completion has the form that `style` names, else 0.0.

    Args:
        completions: texts, or lists of messages.
        style: "hash": `####` occurs once, and the last non-empty line is `#### n` with nothing but a number (a currency
            or percent sign may stand with it, a unit may not). "think": `<think>...</think>` then
            `<answer>...</answer>`, each tag once, neither part empty, only whitespace outside. A chat template that
            writes the opening `<think>` into the prompt leaves none for the completion, which then scores 0.0.

    Raises:
        RewardSpecError: `style` is not known.

    >>> answer_format(["6 * 7 = 42\n#### 42", "#### 42\nI am sure.", "42"])
    [1.0, 0.0, 0.0]
    >>> answer_format(["<think>6 * 7</think>\n<answer>42</answer>", "<answer>42</answer>"], style="think")
    [1.0, 0.0]
    """
    if style not in _STYLES:
        raise RewardSpecError(
            f"answer_format: style {style!r} is not known.{did_you_mean(str(style), _STYLES)} Choose one of: "
            f"{', '.join(_STYLES)}."
        )
    has_form = _STYLES[style]
    return [float(has_form(completion_text(completion).strip())) for completion in completions]


def _ends_in_hash_line(text: str) -> bool:
    match = _FINAL_HASH_LINE.search(text)
    return match is not None and text.count("####") == 1 and parse_number(match[1]) is not None


def _thinks_then_answers(text: str) -> bool:
    match = _THINK_THEN_ANSWER.fullmatch(text)
    return (
        match is not None
        and all(text.count(tag) == 1 for tag in _THINK_TAGS)
        and all(part.strip() for part in match.groups())
    )


_STYLES = {"hash": _ends_in_hash_line, "think": _thinks_then_answers}
