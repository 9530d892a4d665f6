"""Take away reward for saying the same thing over and over.

"Demystifying Long CoT" (arXiv 2502.03373, appendix C.2) found that models pad their reasoning with
repetitions once length pays, and gives a small penalty to every token of an n-gram that occurred
before. A reward here is one number for a completion, so the penalty is the share of such n-grams,
which does not grow with the length of the text. Open-R1 computes it this way too.
"""

import re
from typing import Any

from grpo_hf.data.completions import Completion, completion_text
from grpo_hf.rewards._options import check_number, check_whole
from grpo_hf.scoring.reward import reward_settings

# Thai, Lao, Myanmar, Khmer, kana and Han are written without spaces: each character is a word.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\U00020000-\U0003ffff"
)
_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")


def _check_options(n: int, max_penalty: float) -> None:
    check_whole("repetition", "n", n)
    # It is subtracted, so it has no minus sign.
    check_number("repetition", "max_penalty", max_penalty, least=0)


@reward_settings(in_process=True, check=_check_options)
def repetition(
    completions: list[Completion], *, n: int = 4, max_penalty: float = 1.0, **columns: Any
) -> list[float | None]:
    """Return -max_penalty * (1 - d / t), where d of the t n-grams are distinct.

    The reward is 0.0 where there are no n-grams. Words are compared without case. A punctuation
    mark is a word of its own, and so is a character of a script without spaces. With n = 4, the
    solutions of GSM8K lose 0.07 on average, the solutions of MATH-500 lose 0.17, and one sentence
    over and over loses nearly 1.

    Args:
        completions: texts, or lists of messages.
        n: words in an n-gram; the smaller it is, the more of an ordinary text counts as repeated.
        max_penalty: what a text loses that consists of nothing but repetition.

    Raises:
        RewardSpecError: `n` is not a whole number above 0, or `max_penalty` is negative or not
            finite.

    >>> repetition(["a b c a b c", "one two three four", "so so so so so", "so"], n=2)
    [-0.4, 0.0, -0.75, 0.0]
    """
    _check_options(n, max_penalty)
    rewards: list[float | None] = []
    for completion in completions:
        repeated = _repeated_share(completion_text(completion), n)
        # Adding 0.0 turns -0.0 into 0.0.
        rewards.append(-max_penalty * repeated + 0.0)
    return rewards


def _repeated_share(text: str, n: int) -> float:
    words = _TOKEN.findall(text.lower())
    total = len(words) - n + 1
    if total < 1:
        return 0.0
    distinct = set()
    for start in range(total):
        distinct.add(tuple(words[start : start + n]))
    return (total - len(distinct)) / total
