"""A generation batch into micro-batches: groups together, tokens balanced, and still the loss of the whole batch.

TRL 1.16 shuffles the rows of a generation batch and cuts it into equal parts, which tears groups apart, so a prompt
would have to be read in every part. `micro_batches` deals whole groups instead, so that each part costs about the same.
Rows without a signal cost nothing where that is exact. What each loss is divided by is then put right, so that the
parts of one optimizer step add up to the loss of one large batch:

| loss | of one batch | TRL's parts add up to |
|---|---|---|
| grpo, sapo, dr_grpo, luspo | mean over rows | the same |
| dapo, cispo, vespo | sum over tokens / tokens | that of the average optimizer step of the generation batch |
| bnpo | sum over tokens / tokens | the mean of each part's mean |

Shapes: B rows of a generation batch, C the width of its completions.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .packing import distinct_prompts

Batch = dict[str, Any]  # tensors of B rows, lists of B entries, and scalars, as TRL has them

OVER_TOKENS = ("dapo", "cispo", "vespo")


def divide(trainer: Any, batch: Batch) -> list[Batch]:
    """Cut a trainer's generation batch into its micro-batches, without the rows that need not be computed."""
    return micro_batches(
        batch,
        kept_rows(trainer, batch),
        steps=trainer.args.steps_per_generation,
        window=trainer.args.gradient_accumulation_steps,
        loss_type=trainer.loss_type,
        total=lambda tensor: trainer.accelerator.reduce(tensor, "sum"),
    )


def micro_batches(
    batch: Batch,
    kept: Tensor,
    *,
    steps: int,
    window: int,
    loss_type: str,
    total: Callable[[Tensor], Tensor],
) -> list[Batch]:
    """Cut a generation batch into micro-batches.

    Args:
        batch: what TRL 1.16 keeps of a rollout, B rows.
        kept (`Tensor` of shape (B,)): which rows are computed; what is divided by counts the others as well.
        steps (`int`): how many micro-batches; B is a multiple of it.
        window (`int`): how many of them make an optimizer step. Where it does not divide `steps`, an optimizer step
            spans rollouts whose tokens are not known yet, and losses over tokens keep TRL's average.
        loss_type (`str`): TRL's name of the loss.
        total: sums a tensor over processes.

    Returns:
        `list[Batch]`: the micro-batches; where TRL's loss has to be multiplied by something, that is `loss_scale`.
    """
    tokens = loss_mask(batch).sum(1)  # (B,)
    parts = deal(
        batch["prompt_ids"], batch["prompt_mask"], batch["completion_mask"].sum(1) * kept, steps
    )
    of_parts = torch.stack([tokens[part].sum() for part in parts])
    of_step = torch.stack([chunk.sum() for chunk in of_parts.split(window)]).repeat_interleave(
        window
    )[:steps]
    everywhere = total(of_step)
    micro = []
    for index, part in enumerate(parts):
        piece = _silenced(select(batch, part), kept[part])
        if loss_type == "bnpo" and steps % window == 0:
            piece["loss_scale"] = loss_mask(piece).sum() * window / of_step[index].clamp(min=1)
        if loss_type in OVER_TOKENS and steps % window == 0:  # TRL multiplies by window / steps
            piece["num_items_in_batch"] = everywhere[index] * steps / window
        micro.append(piece)
    return micro


def _silenced(piece: Batch, kept: Tensor) -> Batch:
    """The same rows, without the tokens of those that are not kept: update/packing.py leaves rows without a token out.

    Every process has to call backward, and to gather as many rows' metrics, as the others; so where no row is kept, one
    token without an advantage stands for them.
    """
    piece["completion_mask"] = piece["completion_mask"] * kept[:, None]
    if not kept.any():
        piece["prompt_mask"] = torch.zeros_like(piece["prompt_mask"])
        piece["prompt_mask"][:, -1] = piece["completion_mask"][0, 0] = 1
        piece["advantages"] = torch.zeros_like(piece["advantages"])
    return piece


def without_rounding(trainer: Any, batch: Batch, rewards: Tensor) -> Batch:
    """Set advantages of groups with equal rewards to exactly 0: r - mean(r) is not, in float32, for a mean of six.

    Args:
        batch: with `advantages`, (B,), of this process.
        rewards (`Tensor` of shape (W·B, F)): rewards of all processes, one column per function.
    """
    if (
        trainer.multi_objective_aggregation != "sum_then_normalize"
    ):  # the other compares a group with all of them
        return batch
    size = trainer.num_generations if trainer.model.training else trainer.num_generations_eval
    groups = rewards.view(-1, size, rewards.shape[1])  # (N, G, F); NaN stands for None
    low, high = (
        groups.nan_to_num(nan=torch.inf).amin(1),
        groups.nan_to_num(nan=-torch.inf).amax(1),
    )  # (N, F)
    whole = ~groups.isnan().any(1) | groups.isnan().all(
        1
    )  # a reward that judges some of a group only is no constant
    equal = ((low >= high) & whole).all(1).repeat_interleave(size)  # (W·B,)
    rows = len(batch["advantages"])
    mine = equal[trainer.accelerator.process_index * rows :][:rows]
    return {**batch, "advantages": batch["advantages"].masked_fill(mine, 0.0)}


def kept_rows(trainer: Any, batch: Batch) -> Tensor:
    """The rows that an update has to compute, (B,); their share over all processes is logged as `signal/kept_fraction`.

    A row whose advantages are all 0 is left out where nothing but the advantage gives a row a gradient: without a KL
    term, an entropy bonus and an entropy quantile.
    """
    signal = batch["advantages"].view(len(batch["prompt_ids"]), -1).any(1)
    if trainer.beta != 0 or trainer._entropy_bonus_enabled or trainer.top_entropy_quantile < 1:
        signal = torch.ones_like(signal)
    share = trainer.accelerator.gather(signal.float()).mean().item()
    trainer._metrics["train"]["signal/kept_fraction"].append(share)
    return signal


def loss_mask(batch: Batch) -> Tensor:
    """Which tokens count in the loss, (B, C)."""
    return batch["completion_mask"] * batch.get("tool_mask", 1)


def deal(prompt_ids: Tensor, prompt_mask: Tensor, costs: Tensor, parts: int) -> list[Tensor]:
    """Deal rows into parts of equal size: groups whole where they fit, the dearest first, each to the cheapest part.

    Args:
        prompt_ids, prompt_mask (`Tensor` of shape (B, P)): rows with equal prompts belong together.
        costs (`Tensor` of shape (B,)): tokens of each completion; 0 for a row that will not be computed.
        parts (`int`): a divisor of B.

    Returns:
        `list[Tensor]`: the rows of each part, ascending.
    """
    size = len(prompt_ids) // parts
    _, group_of = distinct_prompts(prompt_ids, prompt_mask)
    dealt: list[list[int]] = [[] for _ in range(parts)]
    load = [0.0] * parts
    by_cost = torch.argsort(costs, descending=True, stable=True)
    groups = [by_cost[group_of[by_cost] == group] for group in range(int(group_of.max()) + 1)]
    prompt_costs = [int(prompt_mask[group[0]].sum()) * bool(costs[group].any()) for group in groups]
    order = sorted(
        range(len(groups)), key=lambda g: -(int(costs[groups[g]].sum()) + prompt_costs[g])
    )
    for which in order:
        rows = groups[which]
        while len(rows):
            roomy = [part for part in range(parts) if size - len(dealt[part]) >= len(rows)]
            if roomy:
                part = min(roomy, key=lambda p: load[p])
                taken = rows
            else:  # no part holds what is left of the group: fill the one with most room with an even choice of it
                part = max(range(parts), key=lambda p: (size - len(dealt[p]), -load[p]))
                room = size - len(dealt[part])
                taken = rows[torch.arange(room, device=rows.device) * len(rows) // room]
            dealt[part] += taken.tolist()
            load[part] += int(costs[taken].sum()) + prompt_costs[which]
            rows = rows[~torch.isin(rows, taken)]
    return [torch.tensor(sorted(part), device=prompt_ids.device) for part in dealt]


def select(batch: Batch, rows: Tensor) -> Batch:
    """Those rows of a batch; scalars stay."""

    def choose(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[rows] if value.ndim else value
        return [value[row] for row in rows.tolist()] if isinstance(value, list) else value

    return {name: choose(value) for name, value in batch.items()}
