"""Dynamic sampling (DAPO, arXiv 2503.14476, section 3.2): fresh groups for those without a signal.

A group whose completions all earn the same has advantage 0 and teaches nothing. `replace_groups`
rolls out fresh prompts in the place of such groups, for a few rounds at most. The planned order of
the data stays as it is, so every prompt is still seen when it was meant to be, and fresh prompts
come on top. They are drawn from seed, step and round alone, so that a run and a resumed run draw
the same. All processes see all advantages, and take every decision together.

Shapes: B rows per process, W processes, G completions per group, N groups on all processes; groups
may span processes.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..config import option
from ..errors import ConfigError
from ..run_context import RefillPlan, RunContext, RunTraits
from ..trl_seam import Batch
from ..update.micro_batches import loss_mask

Row = dict[str, Any]


@dataclass(frozen=True)
class Replaced:
    """A rollout after dynamic sampling, and its cost.

    Args:
        batch: with fresh groups in the place of some that had no signal.
        metrics: to log: `signal/refilled_groups`, `signal/refill_prompts` (drawn for that),
            `signal/refill_rounds`, and `signal/refill_time` in seconds.
    """

    batch: Batch
    metrics: dict[str, float]


def check_dynamic_sampling(args: Any, traits: RunTraits) -> None:
    """Refuse settings with which dynamic sampling, where it is on, cannot work.

    Args:
        args: of the run.

    Raises:
        ConfigError: the model reads images, or advantages are scaled over the whole batch, which
            fresh groups change.
    """
    if not option(args, "dynamic_sampling"):
        return
    if traits.reads_images:
        raise ConfigError(
            "--dynamic_sampling is for text; this model reads images. Leave dynamic_sampling off."
        )
    # A fresh group has its advantages from another rollout, so they may not depend on the groups
    # beside it.
    own_group = args.multi_objective_aggregation == "sum_then_normalize"
    if args.scale_rewards == "batch" or not own_group:
        raise ConfigError(
            "--dynamic_sampling puts fresh groups beside the planned ones, so advantages have to "
            "be those of their own group. Use --scale_rewards group or none, and "
            "--multi_objective_aggregation sum_then_normalize."
        )


def replace_groups(
    batch: Batch,
    roll_out: Callable[[list[Row]], tuple[Batch, Tensor]],
    plan: RefillPlan,
    run: RunContext,
) -> Replaced:
    """Replace groups without a signal; those that are left after the last round stay.

    Args:
        batch: the planned rollout, B rows.
        roll_out: turns dataset rows, the same number on every process, into a rollout and its
            rewards.
        plan: where fresh prompts come from.
    """
    start = time.perf_counter()
    refilled = 0
    drawn = 0
    done = 0
    while done < plan.rounds:
        holes = _positions(~_groups_with_signal(batch, run))
        if not holes:
            break
        # A round draws as many groups as are missing; the number of rounds bounds the cost.
        rows = draw_rows(plan.data, len(holes), run, seed=f"{plan.seed}/{done}")
        # A hole and the group that fills it may lie on different processes.
        rolled_out, _ = roll_out(rows)
        fresh = _from_all_processes(rolled_out, run)
        has_signal = _by_group(fresh["advantages"], run.group_size)
        # More groups than holes may have been drawn, and some of them have no signal either.
        useful = _positions(has_signal)[: len(holes)]
        batch = _splice(batch, fresh, holes[: len(useful)], useful, run, plan.pad_token_id)
        refilled += len(useful)
        drawn += len(has_signal)
        done += 1
    metrics = {
        "signal/refilled_groups": float(refilled),
        "signal/refill_prompts": float(drawn),
        "signal/refill_rounds": float(done),
        "signal/refill_time": time.perf_counter() - start,
    }
    return Replaced(batch, metrics)


def draw_rows(data: Any, groups: int, run: RunContext, *, seed: str) -> list[Row]:
    """Draw this process's rows of fresh groups: at least `groups`, as many rows on every process.

    Args:
        data: the training data.
        seed: what decides the draw; the same on all processes. It is no secret.
    """
    # Rounded up to whole rows per process: every process has to generate as often as the others.
    while groups * run.group_size % run.world:
        groups += 1
    # A generator of its own: the draw must not use up the random numbers of the run.
    generator = random.Random(seed)
    chosen = [generator.randrange(len(data)) for _ in range(groups)]
    own_rows = run.mine(groups * run.group_size // run.world)
    rows = []
    for row in range(own_rows.start, own_rows.stop):
        rows.append(data[chosen[row // run.group_size]])
    return rows


def _groups_with_signal(batch: Batch, run: RunContext) -> Tensor:
    """Return which groups of all processes have a signal, (W·B / G,)."""
    return _by_group(_gathered("advantages", batch["advantages"], run), run.group_size)


def _by_group(advantages: Tensor, group_size: int) -> Tensor:
    """Return which groups have an advantage that is not 0; (rows,) or (rows, C) -> (groups,)."""
    return (advantages != 0).view(len(advantages) // group_size, -1).any(1)


def _positions(flags: Tensor) -> list[int]:
    """Return where flags, (groups,), are set; the host waits once, and can count from then on."""
    return [position for position, is_set in enumerate(flags.tolist()) if is_set]


def _from_all_processes(batch: Batch, run: RunContext) -> Batch:
    gathered: Any = {}
    for name, value in batch.items():
        gathered[name] = _gathered(name, value, run)
    return gathered


def _gathered(name: str, value: Any, run: RunContext) -> Any:
    """Return a tensor of rows from all processes, padded to one width; anything else as it is."""
    if not isinstance(value, Tensor) or not value.ndim:
        return value
    # TRL pads a rollout to the longest row of its own process, and `gather` needs one shape.
    if value.ndim > 1:
        value = run.accelerator.pad_across_processes(
            value, dim=1, pad_first=_pads_on_the_left(name)
        )
    return run.gather(value)


def _pads_on_the_left(name: str) -> bool:
    """Return whether rows under this name are padded on the left, as prompts are."""
    return name.startswith("prompt_")


def _splice(
    batch: Batch,
    fresh: Batch,
    holes: list[int],
    useful: list[int],
    run: RunContext,
    pad_token_id: int,
) -> Batch:
    """Put some groups of a fresh rollout in the place of groups of a batch.

    Args:
        batch: this process's rows.
        fresh: the rows of all processes.
        holes: the groups that are replaced, by their number among those of all processes.
        useful: the groups of `fresh` that replace them, in the same order.
    """
    rows = len(batch["prompt_ids"])
    targets = []
    sources = []
    for hole, group in zip(holes, useful, strict=True):
        for offset in range(run.group_size):
            # Counted from this process's first row; others belong to other processes.
            target = hole * run.group_size + offset - run.mine(rows).start
            if 0 <= target < rows:
                targets.append(target)
                sources.append(group * run.group_size + offset)
    device = batch["prompt_ids"].device
    # Whole numbers also where this process replaces nothing.
    moved = torch.tensor([targets, sources], dtype=torch.long, device=device)
    spliced: Any = dict(batch)
    fresh_values: Any = fresh
    for name, value in batch.items():
        if not isinstance(value, Tensor) or not value.ndim:
            continue
        other = fresh_values[name]
        # Masks and log-probabilities are 0 where there is no token.
        if value.ndim > 1:
            fill = pad_token_id if name.endswith("_ids") else 0
            width = max(value.shape[1], other.shape[1])
            value = _widen(value, width, fill, left=_pads_on_the_left(name))
            other = _widen(other, width, fill, left=_pads_on_the_left(name))
        spliced[name] = value.index_copy(0, moved[0], other[moved[1]].to(value.dtype))
    # TRL divides losses over tokens by it, and fresh completions have other lengths.
    spliced["num_items_in_batch"] = run.gather(loss_mask(spliced).sum()).sum()
    return spliced


def _widen(block: Tensor, width: int, fill: int, *, left: bool) -> Tensor:
    room = width - block.shape[1]
    return pad(block, (room, 0) if left else (0, room), value=fill)
