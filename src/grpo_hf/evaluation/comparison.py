"""Base against adapter on the same held-out prompts, and the answers of both on disk."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch.distributed.fsdp import FullyShardedDataParallel

from ..data.completions import Completion, completion_text
from ..models import adapters
from ..models.shards import is_sharded
from ..run_files import write_or_say
from ..scoring.scored_reward import ScoredReward
from .answers import greedy_completions, right_answers
from .statistics import Comparison, compare

logger = logging.getLogger(__name__)


Row = dict[str, Any]


def not_comparable(model: Any, *, uses_tools: bool = False) -> str | None:
    """Return why base and adapter cannot be compared at the end of a run, or None.

    Args:
        model: the policy.
        uses_tools: whether it calls tools while it answers.
    """
    if not hasattr(model, "peft_config"):
        return "the whole model was trained, and the base is gone."
    # FSDP1 keeps weights as parts of one flat tensor, which `generate` cannot read.
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        return "FSDP1 flattens the weights. Set fsdp_version: 2, or compare on one device."
    # Each process has its own number of turns, and all of them have to run as many forwards.
    if uses_tools and is_sharded(model):
        return "answers that call tools are not made by sharded weights. Compare on one device."
    return None


def compare_with_base(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    reward: ScoredReward,
    *,
    decoding: Mapping[str, Any],
    trainer_state: Any = None,
    file: Path | None = None,
    progress: Callable[[str, str, int], None] = lambda side, kind, count: None,
) -> Comparison | None:
    """Answer held-out prompts greedily with and without the adapter, and compare the answers.

    Args:
        model: the policy, unwrapped.
        rows: of the data, with `prompt` and the columns that the reward reads.
        reward: an answer is right where it gives its full mark.
        decoding: what `greedy_completions` takes beside the prompts.
        trainer_state: for rewards that read it.
        file: keeps both answers to every prompt; `None` on processes that do not write.
        progress: is told of each side, what it does, and how many more prompts it has done.

    Returns:
        The comparison, without prompts on which the reward failed; None where none is left.
    """
    prompts = [row["prompt"] for row in rows]

    def answered(side: str) -> list[Completion]:
        done = partial(progress, side, "greedy")
        return greedy_completions(model, tokenizer, prompts, progress=done, **decoding)

    answers = {"adapter": answered("adapter")}
    with adapters.as_base(model):
        answers["base"] = answered("base")
    right = {}
    for name, completions in answers.items():
        # A reward may be slower than the answers were.
        progress(name, "judging", 0)
        # Rewards may read token ids. Those of the text are near enough for a comparison.
        texts = list(map(completion_text, completions))
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        right[name] = right_answers(
            reward, rows, completions, completion_ids=ids, trainer_state=trainer_state
        )
    if file is not None:
        _write_answers(file, prompts, answers, right)
    base = []
    adapter = []
    for base_is_right, adapter_is_right in zip(right["base"], right["adapter"], strict=True):
        # None says that the reward failed, which is nothing about the answer.
        if base_is_right is not None and adapter_is_right is not None:
            base.append(base_is_right)
            adapter.append(adapter_is_right)
    # A prompt counts for both or for neither, since the comparison is paired.
    failed = len(prompts) - len(base)
    if failed:
        logger.warning(
            f"The reward failed on {failed} of {len(prompts)} prompts, which are left out."
        )
    return compare(base, adapter) if base else None


def _write_answers(
    file: Path,
    prompts: Sequence[Any],
    answers: Mapping[str, Sequence[Completion]],
    right: Mapping[str, Sequence[bool | None]],
) -> None:
    lines = []
    for index, prompt in enumerate(prompts):
        record: dict[str, Any] = {"prompt": prompt}
        for name in answers:
            record[name] = {"answer": answers[name][index], "right": right[name][index]}
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    # Written anew: a resumed run compares once more, at its own end.
    write_or_say(file, "".join(lines))
