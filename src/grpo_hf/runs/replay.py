"""Compute the batch of a step again that was not made, in the run of its recipe."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from torch import Tensor

from ..durability.kept_batch import KeptBatch, ReplayedRow, replay_rows
from ..errors import DataError
from ..run_files import RECIPE_FILE
from ..trainer import GRPOTrainer
from ..trl_seam import loss_of, tokenizer_of
from .preflight import check_task
from .recipe import Recipe, read_recipe
from .train import make_trainer, prompts_of

# Names of tensors in a line; a NaN in the loss spoils the gradient of every weight.
_NAMED = 3


def replay(run: Path, kept: KeptBatch) -> list[str]:
    """Return a line for each row of a kept batch, those that are not finite first.

    Args:
        run: the output folder of the run.
        kept: read from there.

    Raises:
        GrpoError: the recipe is not there, or what it names has moved.
    """
    file = run / RECIPE_FILE
    if not file.is_file():
        raise DataError(
            f"{run} has no recipe.yaml, so its model and settings are not known. In the script of "
            "the run, make the trainer and call `replay_rows` of grpo_hf.durability.kept_batch."
        )
    with _elsewhere(read_recipe(["--config", str(file)]), run) as recipe:
        task = check_task(recipe, may_stream=True, may_use_tools=True)
        trainer = make_trainer(recipe, task, prompts_of(recipe, task))
        rows = _replay_with(trainer, kept)
    lines = []
    for row in sorted(rows, key=lambda row: not row.wrong):
        lines.append(_line(kept.step, row))
    if not any(row.wrong for row in rows):
        lines.append(
            "Each row by itself is finite here: what overflowed is their sum, or the device that "
            "the run was made on computes in another precision."
        )
    return lines


@contextmanager
def _elsewhere(recipe: Recipe, run: Path) -> Iterator[Recipe]:
    """Let a recipe write into a folder beside its run for a block, and reach no network."""
    # Beside it, because a cold-started model lies there.
    folder = mkdtemp(prefix=f"{run.name}-replay-", dir=run.resolve().parent)
    recipe.training.output_dir = folder
    recipe.training.push_to_hub = False
    recipe.training.report_to = []
    recipe.training.resume_from_checkpoint = None
    try:
        yield recipe
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _replay_with(trainer: GRPOTrainer, kept: KeptBatch) -> list[ReplayedRow]:
    """Give a trainer the weights of the step, and compute its rows again."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in kept.weights.items():
            weights[name].copy_(weight)
    model.train()
    batches = []
    for batch in kept.micro_batches:
        moved: dict[str, Any] = {}
        for name, value in batch.items():
            moved[name] = value.to(trainer.accelerator.device)
        batches.append(moved)

    def loss(piece: Any) -> Tensor:
        return loss_of(trainer, piece)

    return replay_rows(batches, loss, model, tokenizer_of(trainer))


def _line(step: int, row: ReplayedRow) -> str:
    """Return what a row computed to, in a line."""
    line = (
        f"step {step}, micro-batch {row.micro_batch + 1} row {row.row}: loss {row.loss:.6g}, "
        f"gradient {row.gradient_norm:.4g}"
    )
    if row.wrong:
        line += f": NaN or infinity in {', '.join(row.wrong[:_NAMED])}"
        if len(row.wrong) > _NAMED:
            line += f" and {len(row.wrong) - _NAMED} more"
    return f"{line}. {row.text}"
