"""Which rows of a block go into one packed forward: as many as a budget of tokens allows.

Passes that nothing is learned from, those of the old and the reference policy, can be cut anywhere.
Cut between groups they cost nothing more; inside of one, its prompt is read once for each part.

Shapes: as in packing.py.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import option
from ..run_context import RunTraits
from .packing import distinct_prompts


@dataclass(frozen=True)
class TokenBudget:
    """How many tokens a forward may have.

    Args:
        tokens: at most so many, unless a single row has more.
        accelerator: of the run, where every process has to forward as often as the others: with
            sharded weights each forward is a meeting of all of them. Elsewhere None.
    """

    tokens: int
    accelerator: Any = None

    @classmethod
    def of_run(cls, args: Any, traits: RunTraits, accelerator: Any) -> "TokenBudget":
        """Return the budget of a run's passes without gradients."""
        tokens = option(args, "max_tokens_per_forward")
        return cls(tokens, accelerator if traits.sharded_weights else None)

    def pieces(self, input_ids: Tensor, mask: Tensor, logits_to_keep: int) -> list[slice]:
        """Cut a block into slices of rows; a slice without rows is a forward for company's sake.

        Args:
            input_ids, mask (B, P + C): a row without a completion token costs nothing.
            logits_to_keep: C.
        """
        prompts = input_ids[:, :-logits_to_keep]
        in_prompts = mask[:, :-logits_to_keep]
        _, prompt_of = distinct_prompts(prompts, in_prompts)
        completion_lengths = mask[:, -logits_to_keep:].sum(1)
        counts = torch.stack([prompt_of, in_prompts.sum(1), completion_lengths]).tolist()
        pieces = cut_rows(*counts, budget=self.tokens)
        if self.accelerator is not None:
            own = torch.tensor([len(pieces)], device=self.accelerator.device)
            most = int(self.accelerator.gather(own).max())
            pieces += [slice(0, 0)] * (most - len(pieces))
        return pieces


def cut_rows(
    prompt_of: list[int], prompt_lengths: list[int], completion_lengths: list[int], *, budget: int
) -> list[slice]:
    """Cut rows that lie side by side so that each part has at most `budget` distinct tokens.

    Rows of one prompt stay together where that is possible. A row of more tokens is a part of its
    own.

    Args:
        prompt_of (B,): the prompt of each row.
        prompt_lengths, completion_lengths (B,): tokens of each row.
    """
    rows = len(prompt_of)
    ends = [row for row in range(1, rows) if prompt_of[row] != prompt_of[row - 1]]
    pieces = []
    start = 0
    first_of_group = 0
    for end in [*ends, rows]:
        whole = _cost(range(start, end), prompt_of, prompt_lengths, completion_lengths)
        if whole > budget and start < first_of_group:
            pieces.append(slice(start, first_of_group))
            start = first_of_group
        for row in range(first_of_group, end):
            cost = _cost(range(start, row + 1), prompt_of, prompt_lengths, completion_lengths)
            if cost > budget and start < row:
                pieces.append(slice(start, row))
                start = row
        first_of_group = end
    return [*pieces, slice(start, rows)]


def _cost(
    rows: range, prompt_of: list[int], prompt_lengths: list[int], completion_lengths: list[int]
) -> int:
    """Return the distinct tokens of some rows; a prompt counts once, if a row of it is computed."""
    cost = 0
    seen = set()
    for row in rows:
        cost += completion_lengths[row]
        if completion_lengths[row] and prompt_of[row] not in seen:
            seen.add(prompt_of[row])
            cost += prompt_lengths[row]
    return cost
