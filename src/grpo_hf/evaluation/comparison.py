"""Base against adapter on the same held-out prompts, and the answers of both on disk."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch.distributed.fsdp import FullyShardedDataParallel

from ..data.completions import Completion, completion_text
from ..models import adapters
from ..models.shards import is_sharded
from ..run_files import write_or_say
from ..scoring.outcomes import Outcome
from ..scoring.scored_reward import ScoredReward
from .answers import greedy_completions, is_right, judged, own_places
from .cut_answers import CutAnswers, Marked
from .part_marks import PartMarks
from .statistics import LEAST_PAIRS, Comparison, compare

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


def too_few(held_out: int, train: int) -> list[str]:
    """Return a sentence on held-out rows that are too few to compare anything on; none if not.

    Args:
        train: how many rows are left for training.
    """
    if held_out >= LEAST_PAIRS:
        return []
    return [
        f"{train} rows for training and {held_out} for the comparison of base and adapter, which "
        f"says nothing: with fewer than {LEAST_PAIRS} even a change of all may be chance. Give "
        "more data, or --eval_rows 0 to leave the comparison out."
    ]


@dataclass(frozen=True)
class GreedyAnswers:
    """One side's greedy answers to the prompts of a set, in order.

    Args:
        outcomes: what the reward that decides says of each.
        cut: whether each was cut off.
        limit: tokens that an answer may have; None where the run does not say it.
    """

    completions: list[Completion]
    outcomes: list[Outcome]
    cut: list[bool]
    limit: int | None

    @property
    def right(self) -> list[bool | None]:
        """Whether each is right; None where the reward failed."""
        return list(map(is_right, self.outcomes))

    @property
    def values(self) -> list[float | None]:
        """What each earned; None where the reward failed or could not judge it."""
        return [None if outcome.failure else outcome.value for outcome in self.outcomes]


def answer_greedily(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    reward: ScoredReward,
    *,
    side: str,
    decoding: Mapping[str, Any],
    trainer_state: Any = None,
    progress: Callable[[str, str, int], None] = lambda side, kind, count: None,
) -> GreedyAnswers:
    """Answer the prompts of a set with or without the adapter, and judge the answers.

    Args:
        model: the policy, unwrapped.
        rows: of the data, with `prompt` and the columns that the reward reads.
        reward: an answer is right where it gives its full mark.
        side: `"adapter"` or `"base"`.
        decoding: what `greedy_completions` takes beside the prompts.
        trainer_state: for rewards that read it.
        progress: is told of the side, what it does, and how many more prompts it has done; of 0
            when it begins.
    """
    prompts = [row["prompt"] for row in rows]
    done = partial(progress, side, "greedy")
    # A batch may take minutes, and what was said last was of the other side.
    progress(side, "greedy", 0)
    with adapters.as_base(model) if side == "base" else nullcontext():
        written = greedy_completions(model, tokenizer, prompts, progress=done, **decoding)
    completions = [each.completion for each in written]
    # A reward may be slower than the answers were.
    progress(side, "judging", 0)
    # Rewards may read token ids. Those of the text are near enough for a comparison.
    texts = list(map(completion_text, completions))
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    outcomes = judged(reward, rows, completions, completion_ids=ids, trainer_state=trainer_state)
    progress(side, "judging", len(own_places(len(rows))))
    cut = [each.is_cut for each in written]
    return GreedyAnswers(completions, outcomes, cut, decoding["max_new_tokens"])


def compare_marks(base: Sequence[bool | None], adapter: Sequence[bool | None]) -> Comparison | None:
    """Compare whether answers of both sides to the same prompts are right.

    A prompt counts for both or for neither, since the comparison is paired.

    Args:
        base, adapter: by prompt; None where the reward failed, which says nothing of the answer.

    Returns:
        The comparison, or None where no prompt is left.
    """
    pairs = []
    for base_is_right, adapter_is_right in zip(base, adapter, strict=True):
        if base_is_right is not None and adapter_is_right is not None:
            pairs.append((base_is_right, adapter_is_right))
    return compare(*zip(*pairs, strict=True)) if pairs else None


def compare_answers(base: GreedyAnswers, adapter: GreedyAnswers) -> Comparison | None:
    """Compare the answers of both sides to the same prompts.

    Returns:
        The comparison, without prompts on which the reward failed; None where none is left.
    """
    found = compare_marks(base.right, adapter.right)
    failed = len(base.outcomes) - (found.base.total if found is not None else 0)
    if failed:
        logger.warning(
            f"The reward failed on {failed} of {len(base.outcomes)} prompts, which are left out."
        )
    if found is None:
        return None
    earned = []
    for before, after in zip(base.outcomes, adapter.outcomes, strict=True):
        if not before.failure and not after.failure:
            earned.append((before.value, after.value))
    return replace(found, cut=cut_answers(base, adapter), part=PartMarks.count(earned))


def cut_answers(base: GreedyAnswers, adapter: GreedyAnswers) -> CutAnswers | None:
    """Count the answers of both sides that were cut off, on the prompts that are compared.

    Returns:
        The counts, or None where the limit is not known.
    """
    if adapter.limit is None:
        return None
    known = []
    for right, cut in zip(
        zip(base.right, adapter.right, strict=True),
        zip(base.cut, adapter.cut, strict=True),
        strict=True,
    ):
        if right[0] is not None and right[1] is not None:
            known.append(Marked(right[0], right[1], *cut))
    return CutAnswers.count(known, adapter.limit)


def answer_at(answers: GreedyAnswers, place: int) -> Row:
    """Return the answer to one prompt as the files of a run keep it."""
    answer = {"answer": answers.completions[place], "right": answers.right[place]}
    return answer | {"cut": answers.cut[place], "reward": answers.values[place]}


def write_answers(
    file: Path,
    prompts: Sequence[Any],
    answers: Mapping[str, GreedyAnswers],
    trained: Sequence[bool] | None = None,
    golds: Sequence[Any] | None = None,
) -> None:
    """Write both sides' answers to every prompt, or say once why that cannot be done.

    Args:
        trained: whether each prompt is in the training data, too; None if nobody knows.
        golds: what is right for each prompt, where that is known.
    """
    lines = []
    for index, prompt in enumerate(prompts):
        record: Row = {"prompt": prompt}
        if trained is not None:
            record["in_training"] = trained[index]
        if golds is not None:
            record["gold"] = golds[index]
        for name, found in answers.items():
            record["limit"] = found.limit
            record[name] = answer_at(found, index)
        lines.append(json.dumps(record, ensure_ascii=False, default=str) + "\n")
    # Written anew: a resumed run compares once more, at its own end.
    write_or_say(file, "".join(lines))
