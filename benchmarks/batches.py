"""What the trainers work on: crafted batches, recorded completions, and lengths that both sides have to sample.

Shapes: N groups of G completions, B = N·G rows, prompts padded to P, completions to C.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

RECORDED = Path(__file__).parent / "data" / "completions.json"
Group = tuple[list[int], list[list[int]]]  # token ids of a prompt and of its completions


def ragged(count: int, longest: int) -> list[int]:
    """Lengths between a fifth of `longest` and all of it, evenly spread and in no order; the longest is among them."""
    shares = [(i * 37) % 100 / 100 for i in range(count)]
    lengths = [max(1, int(longest * (0.2 + 0.8 * share))) for share in shares]
    lengths[max(range(count), key=shares.__getitem__)] = longest
    return lengths


def crafted(prompt: int, lengths: Sequence[int], groups: int, vocabulary: int) -> list[Group]:
    """Groups of random tokens; the first prompt is `prompt` long, the others a little shorter.

    Args:
        lengths: of all completions, B of them.
    """
    generator = torch.Generator().manual_seed(2)

    def tokens(count: int) -> list[int]:
        return torch.randint(5, vocabulary, (count,), generator=generator).tolist()

    size = len(lengths) // groups
    prompts = [tokens(prompt - (group * 7) % max(prompt // 4, 1)) for group in range(groups)]
    return [
        (ids, [tokens(length) for length in lengths[index * size : (index + 1) * size]])
        for index, ids in enumerate(prompts)
    ]


def recorded(kind: str) -> list[dict[str, Any]]:
    """What `record.py` sampled: for each prompt `messages`, `answer`, `prompt_ids` and `completion_ids`, G of them.

    Args:
        kind (`str`): "zero-shot" or "4-shot".
    """
    if not RECORDED.exists():
        raise SystemExit(
            f"error: {RECORDED} is missing. Run `python -m benchmarks.record --dataset_path ./gsm8k`."
        )
    return json.loads(RECORDED.read_text(encoding="utf-8"))["prompts"][kind]


def to_batch(
    groups: Sequence[Group], padding: int, device: Any = "cpu", *, silent: int = 0
) -> dict[str, Tensor]:
    """A generation batch as TRL 1.16 keeps it.

    Args:
        silent (`int`): how many groups, counted from the last, have rewards that are all alike: advantages of 0.
    """
    prompts = [ids for ids, completions in groups for _ in completions]
    completions = [ids for _, group in groups for ids in group]
    width, longest = max(map(len, prompts)), max(map(len, completions))
    batch = {
        "prompt_ids": torch.tensor(
            [[padding] * (width - len(ids)) + ids for ids in prompts]
        ),  # (B, P)
        "prompt_mask": torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]),
        "completion_ids": torch.tensor(
            [ids + [padding] * (longest - len(ids)) for ids in completions]
        ),  # (B, C)
        "completion_mask": torch.tensor(
            [[1] * len(ids) + [0] * (longest - len(ids)) for ids in completions]
        ),
        "advantages": torch.randn(len(prompts), generator=torch.Generator().manual_seed(3)),  # (B,)
        "num_items_in_batch": torch.tensor(sum(map(len, completions))),
    }
    rows = sum(len(group) for _, group in groups[len(groups) - silent :])
    batch["advantages"][len(prompts) - rows :] = 0
    return {name: tensor.to(device) for name, tensor in batch.items()}


class _Lengths(LogitsProcessor):
    """The end of a text at the length that each row is to have, and nowhere before.

    A decoding loop may put groups in another order and leave rows out once they are finished. So rows are known by
    their prompt, within a group by their order, and later by their number: all, or those that are unfinished.
    """

    def __init__(self, lengths: Sequence[int], prompts: Tensor, end: Sequence[int]) -> None:
        self.of_prompt: dict[tuple[int, ...], list[int]] = {}
        for prompt, length in zip(prompts.tolist(), lengths, strict=True):
            self.of_prompt.setdefault(tuple(prompt), []).append(length)
        self.start, self.end = prompts.shape[1], list(end)
        self.rows: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.rows is None:
            waiting = {prompt: iter(lengths) for prompt, lengths in self.of_prompt.items()}
            self.rows = torch.tensor(
                [next(waiting[tuple(row)]) for row in input_ids.tolist()], device=input_ids.device
            )
        done = input_ids.shape[1] - self.start
        if len(input_ids) != len(self.rows):
            self.rows = self.rows[self.rows > done]
        if len(input_ids) != len(self.rows):
            raise RuntimeError(
                f"{len(input_ids)} rows are sampled, {len(self.rows)} are unfinished"
            )
        scores[:, self.end] = -torch.inf
        last = self.rows == done + 1
        scores[last] = -torch.inf
        scores[last, self.end[0]] = 0
        return scores


@contextmanager
def forced_lengths(trainer: Any, lengths: Sequence[int]) -> Iterator[None]:
    """For the length of a `with` block a trainer's rollouts have these lengths, row by row.

    Sampled lengths differ by chance, and would decide the comparison. transformers 5.23: `generate` asks the model for
    its logits processors by `_get_logits_processor(encoder_input_ids=prompts)`, whichever trainer calls it.
    """
    model, longest = trainer.model.get_base_model(), max(lengths)
    original, limit = model._get_logits_processor, trainer.generation_config.max_new_tokens

    def processors(*positional: Any, **named: Any) -> LogitsProcessorList:
        forced = _Lengths(lengths, named["encoder_input_ids"], trainer.eos_token_ids)
        return LogitsProcessorList([*original(*positional, **named), forced])

    model._get_logits_processor = processors
    trainer.generation_config.max_new_tokens = trainer.generation_kwargs["max_new_tokens"] = longest
    try:
        yield
    finally:
        del model._get_logits_processor
        trainer.generation_config.max_new_tokens = trainer.generation_kwargs["max_new_tokens"] = (
            limit
        )
