"""The tokens of an update, each laid down once: `PackedGroups`.

TRL forwards a (B, P + C) block: every row carries its own copy of the prompt, and padding up to the
longest row of the generation batch. Here the same rows become one row without either:

    [ prompt_1[:-1] | ... | prompt_N[:-1] | suffix_1 | ... | suffix_B ]

    suffix = prompt[-1:] + completion[:-1]

The fork one token before the prompt's end gives every token of a suffix exactly one next token to
predict, and the shared part none, so nothing is scored twice. `update/packed_attention.py` reads
the layout: a prompt sees itself, a suffix sees its prompt and itself.

Shapes: B rows of a block with prompts padded to P and completions padded to C; in the packed row
N distinct prompts, M suffixes (rows without a token have none), S tokens in the suffixes and T
in all.
"""

from functools import cached_property
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from ..torch_seam import VarlenCall
from .sequences import Padded, Spans, ends_of, move_together, owners_of, places_of

IGNORED = -100  # the label of a position that predicts nothing, as everywhere in transformers


def distinct_prompts(prompts: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Find the distinct prompts, whatever their padding holds, and the one that each row has.

    Args:
        prompts, mask (B, P): padded on the left; the mask is 0 there.

    Returns:
        Prompts, (N, P), with -1 for padding; and indices into them, (B,).
    """
    return torch.unique(prompts.masked_fill(mask == 0, -1), dim=0, return_inverse=True)


# No dataclass: where FSDP2 casts the inputs of a layer it gives each layer a copy of those, and
# what layers write into it or keep in it would be lost.
class PackedGroups:
    """One packed row, and where each sequence lies in it."""

    def __init__(
        self,
        *,
        input_ids: Tensor,
        position_ids: Tensor,
        labels: Tensor,
        prompt_lengths: Tensor,
        suffix_lengths: Tensor,
        prompt_of: Tensor,
        cells: Tensor,
        block: tuple[int, int],
        counts: tuple[list[int], list[int], list[int]],
    ) -> None:
        """Take what `pack` has laid down.

        Args:
            input_ids (1, T): the tokens.
            position_ids (1, T): each token's position in its own prompt and completion.
            labels (1, S): the next token of each suffix position.
            prompt_lengths (N,): lengths of the shared parts, one token less than the prompts.
            suffix_lengths (M,): lengths of the suffixes.
            prompt_of (M,): the prompt of each suffix; ascending.
            cells (S,): where each suffix position lies in the flattened (B, C) block.
            block: (B, C).
            counts: lengths of prompts and of suffixes, and each suffix's prompt, as numbers of
                Python: to ask a device for them in a layer is to let it run dry.
        """
        self.input_ids = input_ids
        self.position_ids = position_ids
        self.labels = labels
        self.prompt_lengths = prompt_lengths
        self.suffix_lengths = suffix_lengths
        self.prompt_of = prompt_of
        self.cells = cells
        self.block = block
        self._counts = counts
        # Layers that attended to this row, each with its window.
        self.readers: list[tuple[nn.Module, int | None]] = []
        # The kernels, (D, K), of the convolutions that read this row.
        self.convolutions: list[tuple[int, ...]] = []
        self._masks: dict[int | None, tuple[Tensor | None, Tensor]] = {}
        self._contexts: dict[int, tuple[Tensor, Tensor]] = {}
        self._windows: dict[int, tuple[VarlenCall, Tensor]] = {}

    @classmethod
    def pack(
        cls,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        device: torch.device | None = None,
    ) -> "PackedGroups":
        """Lay a block of rows down once.

        Rows share a prompt when its tokens are equal: equal tokens have equal states, whatever
        group they belong to, and rows of one group whose prompts differ (a rollout function may do
        that) do not share.

        Args:
            input_ids (B, P + C): prompts padded on the left, completions on the
                right.
            attention_mask (B, P + C): 1 for a token, 0 for padding.
            logits_to_keep: C.
            device: where the row is needed, if not where the block is.
        """
        device = device or input_ids.device
        # Sizes depend on what the block holds. On a device each of them would be waited for.
        input_ids, attention_mask = input_ids.cpu(), attention_mask.cpu()
        prompts = input_ids[:, :-logits_to_keep]  # (B, P)
        completions = input_ids[:, -logits_to_keep:]  # (B, C)
        mask = attention_mask[:, :-logits_to_keep].bool()
        scored = attention_mask[:, -logits_to_keep:].bool()
        kept = scored.clone()
        # A block without a token keeps one, unscored, so that the loss stays attached.
        kept[0, 0] |= ~scored.any()
        rows = kept.any(1).nonzero()[:, 0]  # (M,)
        distinct, prompt_of = distinct_prompts(prompts[rows], mask[rows])
        # Suffixes of one prompt lie side by side, so that one call can attend to it for all.
        by_prompt = torch.argsort(prompt_of, stable=True)
        rows = rows[by_prompt]
        prompt_of = prompt_of[by_prompt]
        prompt = distinct[:, :-1]  # (N, P - 1)
        in_prompt = prompt >= 0
        prompt_lengths = in_prompt.sum(1)  # (N,)
        suffix = torch.cat([prompts[rows, -1:], completions[rows, :-1]], dim=1)  # (M, C)
        in_suffix = kept[rows]
        column = torch.arange(logits_to_keep)  # (C,)
        cells = (rows[:, None] * logits_to_keep + column)[in_suffix]  # (S,)
        # Padding does not count: a token's position is that in a batch of one row.
        prompt_positions = (in_prompt.cumsum(1) - 1)[in_prompt]
        suffix_positions = (prompt_lengths[prompt_of, None] + column)[in_suffix]
        suffix_lengths = in_suffix.sum(1)
        row, positions, labels, *lengths, cells = move_together(
            [
                torch.cat([prompt[in_prompt], suffix[in_suffix]]),
                torch.cat([prompt_positions, suffix_positions]),
                completions.masked_fill(~scored, IGNORED).flatten()[cells],
                prompt_lengths,
                suffix_lengths,
                prompt_of,
                cells,
            ],
            device,
        )
        return cls(
            input_ids=row[None],
            position_ids=positions[None],
            labels=labels[None],
            prompt_lengths=lengths[0],
            suffix_lengths=lengths[1],
            prompt_of=lengths[2],
            cells=cells,
            block=(completions.shape[0], completions.shape[1]),
            counts=(prompt_lengths.tolist(), suffix_lengths.tolist(), prompt_of.tolist()),
        )

    def unpack(self, values: Tensor) -> Tensor:
        """Put one value per suffix position, (1, S), back into the block, (B, C).

        It is zero where nothing is scored.
        """
        rows, columns = self.block
        return (
            values.new_zeros(rows * columns)
            .index_copy(0, self.cells, values[0])
            .view(rows, columns)
        )

    @cached_property
    def shared(self) -> int:
        """Where the suffixes begin: the number of tokens in front of them."""
        return self.input_ids.shape[1] - self.labels.shape[1]

    @cached_property
    def groups(self) -> list[tuple[slice, slice, list[slice]]]:
        """Tell where each prompt's shared part lies in the row, and where its suffixes do."""
        prompt_lengths, suffix_lengths, prompt_of = self._counts
        suffixes_of: list[list[int]] = [[] for _ in prompt_lengths]
        for prompt, length in zip(prompt_of, suffix_lengths, strict=True):
            suffixes_of[prompt].append(length)
        groups = []
        start = 0
        at = self.shared
        for length, lengths in zip(prompt_lengths, suffixes_of, strict=True):
            ends = list(accumulate(lengths, initial=at))
            suffixes = [slice(begin, end) for begin, end in pairwise(ends)]
            groups.append((slice(start, start + length), slice(at, ends[-1]), suffixes))
            start += length
            at = ends[-1]
        return groups

    @cached_property
    def prompts(self) -> Padded:
        """The shared parts as (N, longest)."""
        return Padded.of(self.prompt_lengths, self._counts[0])

    @cached_property
    def suffixes(self) -> Padded:
        """The suffixes as (M, longest)."""
        return Padded.of(self.suffix_lengths, self._counts[1])

    @cached_property
    def spans(self) -> Spans:
        """Where sequences end, for attention without a window."""
        # Prompts of one token sort before all others, and share nothing: no sequence is empty.
        empty = self._counts[0].count(0)
        ends = ends_of(torch.cat([self.prompt_lengths[empty:], self.suffix_lengths]))
        longest_prompt = self.prompts.longest
        longest = max(longest_prompt, self.suffixes.longest)
        itself = VarlenCall(ends, ends, longest, longest, is_causal=True)
        if not self.shared:
            return Spans(itself)
        by_prompt = self.suffix_lengths.new_zeros(len(self.prompt_lengths))
        by_prompt = by_prompt.index_add(0, self.prompt_of, self.suffix_lengths)[empty:]
        sizes = [together.stop - together.start for _, together, _ in self.groups]
        together = VarlenCall(
            ends_of(by_prompt),
            ends_of(self.prompt_lengths[empty:]),
            max(sizes[empty:]),
            longest_prompt,
            is_causal=False,
        )
        return Spans(itself, together, first=self.shared + sum(sizes[:empty]))

    def in_window(self, window: int) -> tuple[VarlenCall, Tensor]:
        """Return where sequences end with a window, and where their keys lie in the row.

        Args:
            window: how many positions a token sees, its own included.
        """
        if window not in self._windows:
            self._windows[window] = self._build_window(window)
        return self._windows[window]

    def _build_window(self, window: int) -> tuple[VarlenCall, Tensor]:
        # A suffix's first token sees so many of its prompt.
        before = self.prompt_lengths.clamp(max=window - 1)[self.prompt_of]
        lengths = before + self.suffix_lengths
        keys = []
        for prompt, length in zip(self._counts[2], self._counts[1], strict=True):
            keys.append(min(self._counts[0][prompt], window - 1) + length)
        place = places_of(lengths, sum(keys))
        owner = owners_of(lengths, sum(keys))
        prompt_end = self.prompt_lengths.cumsum(0)[self.prompt_of]
        in_prompt = prompt_end[owner] - before[owner] + place
        suffix_start = self.shared + self.suffix_lengths.cumsum(0) - self.suffix_lengths
        in_suffix = suffix_start[owner] + place - before[owner]
        of_suffixes = torch.where(place < before[owner], in_prompt, in_suffix)
        of_prompts = torch.arange(self.shared, device=of_suffixes.device)
        prompts = self.prompt_lengths[self._counts[0].count(0) :]
        longest = self.prompts.longest
        call = VarlenCall(
            self.spans.itself.ends_q,
            ends_of(torch.cat([prompts, lengths])),
            max(longest, self.suffixes.longest),
            max(longest, *keys),
            is_causal=False,
            window=window,
        )
        return call, torch.cat([of_prompts, of_suffixes])

    def masks(self, window: int | None) -> tuple[Tensor | None, Tensor]:
        """Return what each cell may see, computed once for all layers that share a window.

        Args:
            window: how many positions a token sees, its own included.

        Returns:
            For prompts, (longest, longest), or None for "all that came before"; for suffixes,
            (M, 1, longest suffix, longest prompt + longest suffix). Cells without a token come last
            in a row, so that "all that came before" hides them.
        """
        if window not in self._masks:
            self._masks[window] = self._build_masks(window)
        return self._masks[window]

    def _build_masks(self, window: int | None) -> tuple[Tensor | None, Tensor]:
        device = self.input_ids.device
        prompt = torch.arange(self.prompts.longest, device=device)
        suffix = torch.arange(self.suffixes.longest, device=device)
        # The position of a suffix's first token: (M, 1, 1).
        start = self.prompt_lengths[self.prompt_of][:, None, None]
        of_prompt = (prompt < start).expand(-1, len(suffix), -1)
        of_suffix = (suffix <= suffix[:, None]).expand(len(start), -1, -1)
        prompt_mask = None
        if window is not None:
            of_prompt = of_prompt & (start + suffix[:, None] - prompt < window)
            of_suffix = of_suffix & (suffix[:, None] - suffix < window)
            if window < len(prompt):
                prompt_mask = (prompt <= prompt[:, None]) & (prompt[:, None] - prompt < window)
        return prompt_mask, torch.cat([of_prompt, of_suffix], dim=2)[:, None]

    def with_context(self, size: int) -> tuple[Tensor, Tensor]:
        """Return a longer row in which each sequence follows what came before it in its text.

        Args:
            size: how many tokens stand in front of each sequence; in front of a prompt there are
                none, and in front of a suffix there are its prompt's last ones, as far as it has
                them.

        Returns:
            Where each token of the longer row lies in this one, T for no token; and where each
            token of this row lies in the longer one, (T,).
        """
        if size not in self._contexts:
            self._contexts[size] = self._build_context(size)
        return self._contexts[size]

    def _build_context(self, size: int) -> tuple[Tensor, Tensor]:
        length = self.input_ids.shape[1]
        nothing = [length] * size
        sources: list[int] = []
        tokens: list[int] = []

        def add(context: list[int], sequence: slice) -> None:
            sources.extend(context)
            tokens.extend(range(len(sources), len(sources) + sequence.stop - sequence.start))
            sources.extend(range(sequence.start, sequence.stop))

        for prompt, _, _ in self.groups:
            add(nothing, prompt)
        for prompt, _, suffixes in self.groups:
            before = [*nothing, *range(prompt.start, prompt.stop)]
            for suffix in suffixes:
                # Not [-size:], which is everything for a size of 0.
                add(before[len(before) - size :], suffix)
        both = [torch.tensor(sources), torch.tensor(tokens)]
        of_row, of_longer = move_together(both, self.input_ids.device)
        return of_row, of_longer
