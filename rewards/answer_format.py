"""Pays for an answer in GSM8K's agreed form, the final line `#### n` (arXiv 2110.14168), right or wrong."""

import re
from typing import Any

from grpo_hf.data.completions import Completion, completion_text
from grpo_hf.rewards._text import parse_number
from grpo_hf.scoring.reward import reward_settings

_FINAL_HASH_LINE = re.compile(r"^[ \t]*#### (.*)\Z", re.MULTILINE)


@reward_settings(in_process=True)
def answer_format(completions: list[Completion], **columns: Any) -> list[float | None]:
    r"""1.0 where `####` occurs once and the last non-empty line is `#### n` with nothing but a number, else 0.0.

    A currency or percent sign may stand with the number, a unit may not.

    Args:
        completions: texts, or lists of messages.

    >>> answer_format(["6 * 7 = 42\n#### 42", "#### 42\nI am sure.", "42"])
    [1.0, 0.0, 0.0]
    """
    return [
        float(_ends_in_hash_line(completion_text(completion).strip())) for completion in completions
    ]


def _ends_in_hash_line(text: str) -> bool:
    match = _FINAL_HASH_LINE.search(text)
    return match is not None and text.count("####") == 1 and parse_number(match[1]) is not None
