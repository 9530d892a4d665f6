"""Pay for an answer in GSM8K's form, a last line `#### n` (arXiv 2110.14168), right or wrong."""

import re
from typing import Any

from grpo_hf.data.completions import Completion, completion_text
from grpo_hf.rewards._text import parse_number
from grpo_hf.scoring.reward import reward_settings

_FINAL_HASH_LINE = re.compile(r"^[ \t]*#### (.*)\Z", re.MULTILINE)


@reward_settings(in_process=True)
def answer_format(completions: list[Completion], **columns: Any) -> list[float | None]:
    r"""Return 1.0 where the completion ends in a line `#### n`, else 0.0.

    `####` must occur once, and nothing but a number may follow it. A currency or percent sign may
    stand with the number, a unit may not.

    Args:
        completions: texts, or lists of messages.

    >>> answer_format(["6 * 7 = 42\n#### 42", "#### 42\nI am sure.", "42"])
    [1.0, 0.0, 0.0]
    """
    rewards: list[float | None] = []
    for completion in completions:
        text = completion_text(completion).strip()
        rewards.append(float(_ends_in_hash_line(text)))
    return rewards


def _ends_in_hash_line(text: str) -> bool:
    # A second mark leaves open which number is the answer.
    if text.count("####") != 1:
        return False
    match = _FINAL_HASH_LINE.search(text)
    return match is not None and parse_number(match[1]) is not None
