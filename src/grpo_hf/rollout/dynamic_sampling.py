"""Dynamic sampling (DAPO, arXiv 2503.14476, section 3.2): groups without a signal make room for fresh prompts.

A group whose completions all earn the same has advantage 0 and teaches nothing. `replace_silent_groups` rolls out fresh
prompts in their place, for a few rounds at most. The planned order of the data stays as it is, so every prompt is still
seen when it was meant to be; the fresh ones come on top, drawn from seed, step and round alone, so that a run and a
resumed run draw the same. All processes see all advantages and take every decision together.

Shapes: B rows per process, W processes, G completions per group; groups may span processes.
"""

import copy
import random
import time
from collections.abc import Callable
from typing import Any

import torch
from datasets import IterableDataset
from torch import Tensor
from torch.nn.functional import pad

from ..config import option
from ..errors import ConfigError
from ..update.micro_batches import Batch, loss_mask


def check(trainer: Any) -> None:
    """Refuse what dynamic sampling cannot serve, before training.

    Raises:
        ConfigError: the training data is a stream, from which no prompt can be drawn; the model reads images; or
            advantages are scaled over the whole batch, of which fresh groups are another one.
    """
    if not option(trainer.args, "dynamic_sampling"):
        return
    if trainer._is_vlm:
        raise ConfigError(
            "--dynamic_sampling is for text; this model reads images. Leave dynamic_sampling off."
        )
    if (
        trainer.scale_rewards == "batch"
        or trainer.multi_objective_aggregation != "sum_then_normalize"
    ):
        raise ConfigError(
            "--dynamic_sampling puts fresh groups beside the planned ones, so advantages have to be those of their own "
            "group. Use --scale_rewards group or none, and --multi_objective_aggregation sum_then_normalize."
        )
    if isinstance(trainer.train_dataset, IterableDataset):
        raise ConfigError(
            f"--dynamic_sampling draws fresh prompts, and {type(trainer.train_dataset).__name__} can only be read in "
            "order. Load the data without streaming, or leave dynamic_sampling off."
        )


def replace_silent_groups(
    trainer: Any, batch: Batch, roll_out: Callable[[list[dict[str, Any]]], Batch]
) -> Batch:
    """Replace groups without a signal; those that are left after the last round stay.

    Logged: `signal/refilled_groups`, `signal/refill_prompts` (drawn for that), `signal/refill_rounds`, and what it cost
    in seconds, `signal/refill_time`. Rewards, lengths, the table of completions and the rest are those of the planned
    prompts, so that they do not look better for what was left out; what Monte-Carlo values cost is that of all.

    Args:
        batch: what TRL 1.16 keeps of a rollout, B rows.
        roll_out: turns dataset rows, as many on every process, into such a batch.
    """
    start, metrics = time.perf_counter(), trainer._metrics["train"]
    planned, table = {name: list(values) for name, values in metrics.items()}, trainer._logs
    refilled = drawn = rounds = 0
    while rounds < trainer.args.max_refills:
        holes = (~_loud(trainer, batch)).nonzero()[:, 0]
        if not len(holes):
            break
        if not rounds:
            trainer._logs = copy.deepcopy(
                table
            )  # where fresh prompts are written down, and forgotten
        rows = _fresh_rows(trainer, len(holes), rounds)
        fresh = {name: _everywhere(trainer, name, value) for name, value in roll_out(rows).items()}
        found = _of_groups(trainer, fresh["advantages"]).nonzero()[: len(holes), 0]
        batch = _splice(trainer, batch, fresh, holes[: len(found)], found)
        refilled, rounds = refilled + len(found), rounds + 1
        drawn += len(fresh["advantages"]) // trainer.num_generations
    spent = {
        name: values
        for name, values in metrics.items()
        if name in planned and name.startswith("monte_carlo/")
    }
    for name, values in spent.items():  # all of it is the cost of this step
        planned[name][-1] += sum(values[len(planned[name]) :])
    tokens = metrics["num_tokens"]
    metrics.clear()
    metrics.update(planned | {"num_tokens": tokens})
    trainer._logs = table
    cost = {"refilled_groups": refilled, "refill_prompts": drawn, "refill_rounds": rounds}
    for name, value in {**cost, "refill_time": time.perf_counter() - start}.items():
        metrics[f"signal/{name}"].append(float(value))
    return batch


def _loud(trainer: Any, batch: Batch) -> Tensor:
    """Which groups of all processes have a signal, (W·B / G,)."""
    return _of_groups(trainer, _everywhere(trainer, "advantages", batch["advantages"]))


def _of_groups(trainer: Any, advantages: Tensor) -> Tensor:
    return (advantages != 0).view(len(advantages) // trainer.num_generations, -1).any(1)


def _fresh_rows(trainer: Any, groups: int, attempt: int) -> list[dict[str, Any]]:
    """This process's rows of fresh groups: at least `groups`, and as many rows on every process."""
    world, size = trainer.accelerator.num_processes, trainer.num_generations
    while groups * size % world:
        groups += 1
    step = (trainer.state.global_step, trainer._step % trainer.args.gradient_accumulation_steps)
    chance = random.Random(f"{trainer.args.seed}/{step}/{attempt}")  # a seed, not a secret
    data = trainer.train_dataset
    chosen = [chance.randrange(len(data)) for _ in range(groups)]
    mine = groups * size // world
    first = trainer.accelerator.process_index * mine
    return [data[chosen[row // size]] for row in range(first, first + mine)]


def _everywhere(trainer: Any, name: str, value: Any) -> Any:
    """A tensor of rows from all processes, padded to one width: prompts on the left, the rest on the right."""
    if not isinstance(value, Tensor) or not value.ndim:
        return value
    if value.ndim > 1:
        value = trainer.accelerator.pad_across_processes(
            value, dim=1, pad_first=name.startswith("prompt_")
        )
    return trainer.accelerator.gather(value)


def _splice(trainer: Any, batch: Batch, fresh: Batch, holes: Tensor, found: Tensor) -> Batch:
    """Put fresh groups, by their index in `found`, where groups `holes` of all processes were."""
    size, rows = trainer.num_generations, len(batch["prompt_ids"])
    offsets = torch.arange(size, device=holes.device)
    targets = (holes[:, None] * size + offsets).flatten() - trainer.accelerator.process_index * rows
    sources = (found[:, None] * size + offsets).flatten()
    mine = (targets >= 0) & (targets < rows)
    spliced = dict(batch)
    for name, value in batch.items():
        if not isinstance(value, Tensor) or not value.ndim:
            continue
        other = fresh[name]
        if value.ndim > 1:
            left = name.startswith("prompt_")
            fill = trainer._tokenizer.pad_token_id if name.endswith("_ids") else 0
            value, other = (
                _widen(x, max(value.shape[1], other.shape[1]), left, fill) for x in (value, other)
            )
        spliced[name] = value.index_copy(0, targets[mine], other[sources[mine]].to(value.dtype))
    spliced["num_items_in_batch"] = trainer.accelerator.gather(loss_mask(spliced).sum()).sum()
    return spliced


def _widen(block: Tensor, width: int, left: bool, fill: int) -> Tensor:
    room = width - block.shape[1]
    return pad(block, (room, 0) if left else (0, room), value=fill)
