"""Make the input of the trainers: crafted batches, recorded completions, and forced lengths.

Shapes: N groups of G completions, B = N·G rows, prompts padded to P, completions to C.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

RECORDED = Path(__file__).parent / "data" / "completions.json"

# Token ids of a prompt, and of each of its completions.
Group = tuple[list[int], list[list[int]]]

# Multiples of a step that has no factor in common with 100 visit every hundredth once, in no
# obvious order.
LENGTH_STEP = 37
HUNDREDTHS = 100

# The shortest completion has this share of the length of the longest.
SHORTEST_SHARE = 0.2

# Every crafted prompt is this many tokens shorter than the one before, until it is a quarter
# shorter than the first; then the lengths start again.
PROMPT_STEP = 7

# Token ids below this one may be special tokens, such as the end of a text.
FIRST_TOKEN = 5


def ragged(count: int, longest: int) -> list[int]:
    """Return `count` lengths from a fifth of `longest` to `longest`, spread evenly, in no order.

    One of them is `longest` itself.
    """
    lengths = []
    shares = []
    for index in range(count):
        share = (index * LENGTH_STEP) % HUNDREDTHS / HUNDREDTHS
        shares.append(share)
        share_of_longest = SHORTEST_SHARE + (1 - SHORTEST_SHARE) * share
        lengths.append(max(1, int(longest * share_of_longest)))
    lengths[shares.index(max(shares))] = longest
    return lengths


def crafted(prompt: int, lengths: Sequence[int], groups: int, vocabulary: int) -> list[Group]:
    """Return groups of random tokens.

    Args:
        prompt: the length of the first prompt; the other prompts are a little shorter.
        lengths: of all completions, B of them.
        groups: the number of groups, N.
        vocabulary: the number of tokens to draw from.
    """
    # A fixed seed, so that every side and every run works on the same tokens.
    generator = torch.Generator().manual_seed(2)

    def tokens(count: int) -> list[int]:
        return torch.randint(FIRST_TOKEN, vocabulary, (count,), generator=generator).tolist()

    # All prompts are drawn before all completions.
    prompts = []
    for index in range(groups):
        shorter_by = (index * PROMPT_STEP) % max(prompt // 4, 1)
        prompts.append(tokens(prompt - shorter_by))
    size = len(lengths) // groups
    result = []
    for index, prompt_ids in enumerate(prompts):
        group_lengths = lengths[index * size : (index + 1) * size]
        result.append((prompt_ids, list(map(tokens, group_lengths))))
    return result


def recorded(kind: str) -> list[dict[str, Any]]:
    """Return what `record.py` sampled.

    Args:
        kind (`str`): "zero-shot" or "4-shot".

    Returns:
        For each prompt `messages`, `answer`, `prompt_ids`, and G `completion_ids`.

    Raises:
        SystemExit: the file is missing.
    """
    if not RECORDED.exists():
        raise SystemExit(
            f"error: {RECORDED} is missing. "
            "Run `python -m benchmarks.record --dataset_path ./gsm8k`."
        )
    return json.loads(RECORDED.read_text(encoding="utf-8"))["prompts"][kind]


def to_batch(
    groups: Sequence[Group], padding: int, device: Any = "cpu", *, silent: int = 0
) -> dict[str, Tensor]:
    """Return a generation batch in TRL 1.16's format.

    Args:
        padding (`int`): the id of the padding token.
        silent (`int`): how many groups, counted from the last, have equal rewards: advantages of 0.
    """
    prompts = []
    completions = []
    for prompt, group in groups:
        prompts += [prompt] * len(group)
        completions += group
    # TRL pads prompts on the left, so that all completions start in the same column.
    prompt_ids, prompt_mask = _padded(prompts, padding, left=True)
    completion_ids, completion_mask = _padded(completions, padding, left=False)
    # Random advantages: equal ones would hide an error in their order.
    advantages = torch.randn(len(prompts), generator=torch.Generator().manual_seed(3))  # (B,)
    silent_rows = 0
    for _, group in groups[len(groups) - silent :]:
        silent_rows += len(group)
    advantages[len(prompts) - silent_rows :] = 0
    batch = {
        "prompt_ids": prompt_ids,  # (B, P)
        "prompt_mask": prompt_mask,
        "completion_ids": completion_ids,  # (B, C)
        "completion_mask": completion_mask,
        "advantages": advantages,
        "num_items_in_batch": completion_mask.sum(),
    }
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _padded(rows: Sequence[list[int]], padding: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """Return token ids padded to the longest row, and a mask that is 0 on padding."""
    width = max(map(len, rows))
    ids = []
    mask = []
    for row in rows:
        missing = width - len(row)
        row_padding = [padding] * missing
        ids.append(row_padding + row if left else row + row_padding)
        row_mask = [0] * missing + [1] * len(row)
        mask.append(row_mask if left else row_mask[::-1])
    return torch.tensor(ids), torch.tensor(mask)


class _Lengths(LogitsProcessor):
    """_Lengths ends every row at its own forced length, and at no token before.

    A decoding loop may reorder the groups, and may leave out rows that are finished. So at the
    first token a row is recognised by its prompt, and within a group by its order. Later the number
    of rows tells whether the loop decodes all of them or only the unfinished ones.
    """

    def __init__(self, lengths: Sequence[int], prompts: Tensor, end: Sequence[int]) -> None:
        self.lengths_by_prompt: dict[tuple[int, ...], list[int]] = {}
        for prompt, length in zip(prompts.tolist(), lengths, strict=True):
            self.lengths_by_prompt.setdefault(tuple(prompt), []).append(length)
        self.prompt_width = prompts.shape[1]
        self.end = list(end)
        # The forced length of every row, in the order of the decoding loop.
        self.rows: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.rows is None:
            self.rows = self._lengths_of(input_ids)
        sampled = input_ids.shape[1] - self.prompt_width
        if len(input_ids) != len(self.rows):
            # The loop dropped finished rows.
            self.rows = self.rows[self.rows > sampled]
        if len(input_ids) != len(self.rows):
            raise RuntimeError(
                f"{len(input_ids)} rows are sampled, {len(self.rows)} are unfinished"
            )
        scores[:, self.end] = -torch.inf
        # Rows whose next token is their last one can only take the end token.
        last = self.rows == sampled + 1
        scores[last] = -torch.inf
        scores[last, self.end[0]] = 0
        return scores

    def _lengths_of(self, input_ids: Tensor) -> Tensor:
        """Return the length of every row; rows of one prompt take its lengths in order."""
        lengths = []
        taken: Counter[tuple[int, ...]] = Counter()
        for row in map(tuple, input_ids.tolist()):
            lengths.append(self.lengths_by_prompt[row][taken[row]])
            taken[row] += 1
        return torch.tensor(lengths, device=input_ids.device)


@contextmanager
def forced_lengths(trainer: Any, lengths: Sequence[int]) -> Iterator[None]:
    """Force the lengths of a trainer's rollouts, row by row, in a `with` block.

    Sampled lengths differ by chance and would decide the comparison.
    """
    model = trainer.model.get_base_model()
    original = model._get_logits_processor
    limit = trainer.generation_config.max_new_tokens

    def processors(*positional: Any, **named: Any) -> LogitsProcessorList:
        prompts = named["encoder_input_ids"]
        # grpo-hf compares its sampling with `generate` on a few rows of its own.
        if len(prompts) != len(lengths):
            return original(*positional, **named)
        forced = _Lengths(lengths, prompts, trainer.eos_token_ids)
        return LogitsProcessorList([*original(*positional, **named), forced])

    # transformers 5.23: whichever trainer calls `generate`, it asks the model for its logits
    # processors by `_get_logits_processor(encoder_input_ids=prompts)`.
    model._get_logits_processor = processors
    _set_max_new_tokens(trainer, max(lengths))
    try:
        yield
    finally:
        del model._get_logits_processor
        _set_max_new_tokens(trainer, limit)


def _set_max_new_tokens(trainer: Any, limit: int) -> None:
    # The two sides read the limit from different places.
    trainer.generation_config.max_new_tokens = limit
    trainer.generation_kwargs["max_new_tokens"] = limit
