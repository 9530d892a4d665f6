"""Sequences of many lengths that lie side by side in one row: their ends, places, padded blocks.

What is computed here from lengths on a device asks that device for nothing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..torch_seam import VarlenCall


def move_together(indices: list[Tensor], device: torch.device) -> list[Tensor]:
    """Return whole numbers of the host, (n,) each, on a device: in one copy that is not waited for.

    On the host they are returned as they are.
    """
    if device.type == "cpu":
        return indices
    together = torch.cat(indices)
    if device.type == "cuda":
        together = together.pin_memory()  # what may be paged out is waited for
    moved = together.to(device, non_blocking=together.is_pinned())
    return list(moved.split([len(each) for each in indices]))


@dataclass(frozen=True)
class Spans:
    """Where the sequences of a packed row end, for kernels that take sequences of any length.

    Args:
        itself: prompts and suffixes to themselves.
        together: the suffixes of each prompt, as one sequence, to its shared part; None if no
            prompt has one.
        first: where the suffixes of `together` begin; those in front of it have no shared part.
    """

    itself: VarlenCall
    together: VarlenCall | None = None
    first: int = 0


def ends_of(lengths: Tensor) -> Tensor:
    """Return where sequences of these lengths end, with a 0 in front, in int32."""
    return pad(lengths.cumsum(0), (1, 0)).int()


def owners_of(lengths: Tensor, total: int) -> Tensor:
    """Return the sequence of each token, (total,)."""
    rows = torch.arange(len(lengths), device=lengths.device)
    # With the size given, the device is not asked for it.
    return rows.repeat_interleave(lengths, output_size=total)


def places_of(lengths: Tensor, total: int) -> Tensor:
    """Return each token's place in its sequence, (total,)."""
    starts = (lengths.cumsum(0) - lengths).repeat_interleave(lengths, output_size=total)
    return torch.arange(total, device=lengths.device) - starts


@dataclass(frozen=True)
class Padded:
    """Sequences side by side as (rows, longest).

    `cells` holds where each token lies in that block, flattened.
    """

    rows: int
    longest: int
    cells: Tensor

    @classmethod
    def of(cls, lengths: Tensor, counts: list[int]) -> "Padded":
        """Lay sequences side by side.

        Args:
            lengths (rows,): of the sequences, on their device.
            counts: the same as numbers of Python.
        """
        longest = max(counts)
        total = sum(counts)
        cells = owners_of(lengths, total) * longest + places_of(lengths, total)
        return cls(len(counts), longest, cells)

    def rows_of(self, states: Tensor) -> Tensor:
        """Pad (tokens, ...) to (rows, longest, ...), with zeros for padding."""
        block = states.new_zeros(self.rows * self.longest, *states.shape[1:])
        block = block.index_copy(0, self.cells, states)
        return block.view(self.rows, self.longest, *states.shape[1:])

    def tokens_of(self, states: Tensor) -> Tensor:
        """Undo `rows_of`."""
        return states.flatten(0, 1).index_select(0, self.cells)

    def pad(self, states: Tensor) -> Tensor:
        """Pad (heads, tokens, D) to (rows, heads, longest, D)."""
        return self.rows_of(states.transpose(0, 1)).transpose(1, 2)

    def unpad(self, states: Tensor) -> Tensor:
        """Undo `pad`: (rows, heads, longest, D) -> (tokens, heads, D)."""
        return self.tokens_of(states.transpose(1, 2))
