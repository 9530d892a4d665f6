"""The reward of benchmarks/learning_rate.py."""

import re
from collections.abc import Sequence
from typing import Any

from grpo_hf import completion_text, reward_settings


@reward_settings(batched=False)
def last_number(completions: Sequence[Any], answer: Sequence[int], **columns: Any) -> list[float]:
    """Pay 1.0 where the last number of a completion is the answer."""
    scores = []
    for completion, gold in zip(completions, answer, strict=True):
        numbers = re.findall(r"\d+", completion_text(completion))
        scores.append(float(bool(numbers) and int(numbers[-1]) == gold))
    return scores
