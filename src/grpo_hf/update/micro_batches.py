"""A generation batch into micro-batches: groups together, tokens balanced, one large batch's loss.

TRL 1.16 shuffles the rows of a generation batch and cuts it into equal parts, which tears groups
apart, so a prompt would have to be read in every part. `deal` keeps groups whole where they fit, so
that each part costs about the same. Rows without a signal cost nothing where that is exact. What
each loss is divided by is then put right, so that the parts of one optimizer step add up to the
loss of one large batch:

| loss | of one batch | TRL's parts add up to |
|---|---|---|
| grpo, sapo, dr_grpo, luspo | mean over rows | the same |
| dapo, cispo, vespo | sum over tokens / tokens | that of the average optimizer step of the batch |
| bnpo | sum over tokens / tokens | the mean of each part's, and each process's, mean |

Shapes: B rows of a generation batch, P and C the widths of its prompts and completions.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ..run_context import RunContext
from ..trl_seam import Batch
from .log_probs import RowsComputed
from .packing import distinct_prompts

# Losses that TRL divides by the tokens of all processes.
OVER_TOKENS = ("dapo", "cispo", "vespo")


class MicroBatch(Batch, total=False):
    """Some rows of a generation batch, and what TRL's loss of them has to be multiplied by."""

    loss_scale: Tensor  # ()
    kept_rows: Tensor  # (B,), the rows that are computed


def rows_computed(piece: Any, run: RunContext) -> RowsComputed | None:
    """Return which rows of a micro-batch are computed; `None` if all of them are, everywhere.

    Args:
        piece: what the loss is given; in an evaluation, or with TRL's batches, no micro-batch.
        run: this process's view of the run.
    """
    if "kept_rows" not in piece:
        return None
    old = piece.get("old_per_token_logps")
    return RowsComputed(piece["kept_rows"], loss_mask(piece), old, run.total)


@dataclass(frozen=True)
class Dealt:
    """A rollout as micro-batches, and the share of all processes' rows that are computed."""

    micro_batches: list[MicroBatch]
    kept_fraction: float


def deal_rollout(batch: Batch, args: Any, run: RunContext, *, needs_all_rows: bool) -> Dealt:
    """Cut a rollout into the micro-batches of a run.

    Args:
        batch: the rollout, B rows.
        args: of the run.
        needs_all_rows: whether something beside its advantage gives a row a gradient: a KL term,
            an entropy bonus, an entropy quantile, or a term that a subclass adds to the loss.
            Elsewhere rows whose advantages are all 0 are not computed.
    """
    kept = None if needs_all_rows else rows_with_signal(batch)
    pieces = micro_batches(
        batch,
        kept,
        steps=args.steps_per_generation,
        window=args.gradient_accumulation_steps,
        loss_type=args.loss_type,
        run=run,
    )
    if kept is None:
        return Dealt(pieces, 1.0)
    return Dealt(pieces, run.gather(kept.float()).mean().item())


def micro_batches(
    batch: Batch,
    kept: Tensor | None,
    *,
    steps: int,
    window: int,
    loss_type: str,
    run: RunContext,
) -> list[MicroBatch]:
    """Cut a generation batch into micro-batches.

    Args:
        batch: the rollout, B rows.
        kept (B,): which rows are computed; what is divided by counts the others as well. `None` if
            all of them are.
        steps: how many micro-batches; B is a multiple of it.
        window: how many of them make an optimizer step. Where it does not divide `steps`, an
            optimizer step spans rollouts whose tokens are not known yet, and losses over tokens
            keep TRL's average.
        loss_type: TRL's name of the loss.
        run: this process's view of the run.
    """
    tokens = loss_mask(batch).sum(1)  # (B,)
    costs = batch["completion_mask"].sum(1)
    if kept is not None:
        costs = costs * kept
    dealt = deal(batch["prompt_ids"], batch["prompt_mask"], costs, steps)
    # (steps, rows of a part), on the device in one transfer.
    parts = torch.tensor(dealt, device=tokens.device)
    tokens_of_steps = []
    for chunk in tokens[parts].sum(1).split(window):
        tokens_of_steps.append(chunk.sum())
    of_step = torch.stack(tokens_of_steps)
    of_step = of_step.repeat_interleave(window)[:steps]  # (steps,), by micro-batch
    # Every process takes part in this sum, whatever the loss is.
    everywhere = run.total(of_step)
    micro = []
    for index, part in enumerate(parts):
        piece = select(batch, dealt[index], part)
        if kept is not None:
            piece["kept_rows"] = kept[part]
        if steps % window == 0:
            if loss_type == "bnpo":
                # TRL divides by the tokens of the micro-batch and by `window`, and gradients are
                # averaged over processes; take all three back.
                own = loss_mask(piece).sum()
                piece["loss_scale"] = own * window * run.world / everywhere[index].clamp(min=1)
            if loss_type in OVER_TOKENS:
                # TRL multiplies what it is given by window / steps.
                piece["num_items_in_batch"] = everywhere[index] * steps / window
        micro.append(piece)
    return micro


def rows_with_signal(batch: Batch) -> Tensor:
    """Return which rows have an advantage that is not 0, of the row or of any token, (B,)."""
    return batch["advantages"].view(len(batch["prompt_ids"]), -1).any(1)


def loss_mask(batch: Batch) -> Tensor:
    """Return which tokens count in the loss, (B, C): the policy's own, not those of its tools."""
    return batch["completion_mask"] * batch.get("tool_mask", 1)


def deal(prompt_ids: Tensor, prompt_mask: Tensor, costs: Tensor, parts: int) -> list[list[int]]:
    """Deal rows into parts of equal size: groups whole where they fit, the dearest first.

    Each group goes to the part that is cheapest so far.

    Args:
        prompt_ids, prompt_mask (B, P): rows with equal prompts belong together.
        costs (B,): tokens of each completion; 0 for a row that will not be computed.
        parts: a divisor of B.

    Returns:
        The rows of each part, ascending.
    """
    _, group_of = distinct_prompts(prompt_ids, prompt_mask)
    # One transfer: asked group by group, a device would be waited for many times.
    by_row = torch.stack([group_of, prompt_mask.sum(1), costs.long()]).tolist()
    size = len(prompt_ids) // parts
    dealt: list[list[int]] = [[] for _ in range(parts)]
    load = [0.0] * parts
    for rows, prompt_cost in _groups_by_cost(*by_row):
        while rows:
            part, taken = _next_part(rows, dealt, load, size)
            dealt[part] += taken
            load[part] += sum(by_row[2][row] for row in taken) + prompt_cost
            rows = [row for row in rows if row not in taken]
    # Ascending, so that the rows of a group lie side by side, and share a forward where TRL cuts a
    # micro-batch into smaller ones.
    return [sorted(part) for part in dealt]


def _groups_by_cost(
    group_of: list[int], prompt_lengths: list[int], costs: list[int]
) -> list[tuple[list[int], int]]:
    """Return the rows of each group with the cost of its prompt, the dearest group first."""
    groups: list[list[int]] = [[] for _ in range(max(group_of) + 1)]
    # sorted is stable, so rows and groups of one cost stay in their order on every machine.
    for row in sorted(range(len(costs)), key=lambda row: -costs[row]):
        groups[group_of[row]].append(row)
    priced = []
    for rows in groups:
        of_rows = sum(costs[row] for row in rows)
        # A prompt whose completions all cost nothing is not read at all.
        of_prompt = prompt_lengths[rows[0]] if of_rows else 0
        priced.append((of_rows + of_prompt, rows, of_prompt))
    priced.sort(key=lambda group: -group[0])
    return [(rows, of_prompt) for _, rows, of_prompt in priced]


def _next_part(
    rows: list[int], dealt: list[list[int]], load: list[float], size: int
) -> tuple[int, list[int]]:
    """Return the part that gets the next rows of a group, and which of them."""
    rooms = []
    roomy = []
    for part, rows_of_part in enumerate(dealt):
        rooms.append(size - len(rows_of_part))
        if rooms[part] >= len(rows):
            roomy.append(part)
    if roomy:
        return min(roomy, key=lambda part: load[part]), rows
    # No part holds what is left of the group: fill the one with most room, with an even choice of
    # dear and cheap rows.
    part = max(range(len(dealt)), key=lambda part: (rooms[part], -load[part]))
    return part, [rows[place * len(rows) // rooms[part]] for place in range(rooms[part])]


def select(batch: Batch, rows: list[int], on_device: Tensor | None = None) -> MicroBatch:
    """Return some rows of a batch: of its tensors and lists; scalars stay as they are.

    Args:
        on_device: the same rows where the batch lies, if they are there already.
    """
    if on_device is None:
        on_device = torch.tensor(rows, device=batch["prompt_ids"].device)
    selected: dict[str, Any] = {}
    for name, value in batch.items():
        if isinstance(value, Tensor) and value.ndim:
            selected[name] = value[on_device]
        elif isinstance(value, list):
            selected[name] = [value[row] for row in rows]
        else:
            selected[name] = value
    return cast(MicroBatch, selected)
