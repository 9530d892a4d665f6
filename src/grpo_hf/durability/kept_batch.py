"""The batch of a step whose numbers are not finite: which rows are at fault, and a copy on disk."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from ..models.random_state import own_random_numbers
from ..run_context import RunContext
from ..run_folders import check_folder
from ..update.micro_batches import select
from .finite import OF_ROLLOUT, Verdict, finite_entries, readable_weights

KEPT_FOLDER = "non_finite"
# Steps that are kept of a run that skips them: each has the weights that train.
_MOST_KEPT = 3
_WEIGHTS = "weights.pt"
# Characters of a prompt and of a completion in a message.
_SHOWN = 60


@dataclass(frozen=True)
class Fault:
    """Rows of a micro-batch in which a tensor is not finite.

    Args:
        tensor: what a message calls it.
        micro_batch: its number in the step, from 0 on.
        rows: numbers of rows in the micro-batch.
    """

    tensor: str
    micro_batch: int
    rows: list[int]


@dataclass(frozen=True)
class KeptBatch:
    """What was kept of a step.

    Args:
        step: its number.
        micro_batches: of all processes, those of process 0 first.
        weights: those that train, by name; empty where they were sharded.
    """

    step: int
    micro_batches: list[dict[str, Any]]
    weights: dict[str, Tensor]


def faults_of(verdict: Verdict, log_probs: Callable[..., Tensor] | None) -> list[Fault]:
    """Return the rows of this process that are at fault, the earliest tensor of the step first.

    Args:
        verdict: of the step.
        log_probs: scores rows as the loss does: (input ids, mask, tokens to score); None where a
            process cannot do so alone.
    """
    for tensor in OF_ROLLOUT:
        faults = []
        for place, (micro_batch, _) in enumerate(verdict.micro_batches):
            if tensor in micro_batch:
                finite = finite_entries(micro_batch, tensor).reshape(len(micro_batch[tensor]), -1)
                faults += _fault(OF_ROLLOUT[tensor], place, ~finite.all(1))
        if faults:
            return faults
    broken = []
    for place, (micro_batch, loss) in enumerate(verdict.micro_batches):
        if not torch.isfinite(loss).all():
            broken.append((place, micro_batch))
    faults = []
    if log_probs is not None:
        for place, micro_batch in broken:
            wrong = _unscorable(micro_batch, log_probs)
            faults += _fault("the log-probabilities of the policy", place, wrong)
    if faults:
        return faults
    for place, micro_batch in broken:
        faults += _fault("the loss", place, torch.ones(len(micro_batch["prompt_ids"])))
    return faults


def _fault(tensor: str, micro_batch: int, wrong: Tensor) -> list[Fault]:
    """Return the fault of a micro-batch in a list, which is empty where no row is wrong."""
    rows = wrong.nonzero()[:, 0].tolist()
    return [Fault(tensor, micro_batch, rows)] if rows else []


def _unscorable(micro_batch: Any, log_probs: Callable[..., Tensor]) -> Tensor:
    """Return the rows that the policy gives log-probabilities that are not finite, (B,).

    Rows are scored one by one, because a row may spoil those that are packed with it.
    """
    wrong = []
    for row in range(len(micro_batch["prompt_ids"])):
        piece = select(micro_batch, [row])
        ids = torch.cat([piece["prompt_ids"], piece["completion_ids"]], 1)
        mask = torch.cat([piece["prompt_mask"], piece["completion_mask"]], 1)
        # A run that goes on without this step keeps its random numbers.
        with torch.no_grad(), own_random_numbers(0):
            scores = log_probs(ids, mask, piece["completion_ids"].size(1))
        counted = piece["completion_mask"].bool()
        wrong.append(not bool((torch.isfinite(scores) | ~counted).all()))
    return torch.tensor(wrong)


def row_text(micro_batch: dict[str, Any], row: int, tokenizer: Any) -> str:
    """Return the beginning of a row's prompt and of its completion, for a message."""
    texts = []
    for part in ("prompt", "completion"):
        ids = micro_batch[f"{part}_ids"][row][micro_batch[f"{part}_mask"][row].bool()]
        text = tokenizer.decode(ids, skip_special_tokens=True)
        texts.append(f"{part} {text[:_SHOWN]!r}")
    return ", ".join(texts)


def keep_batch(verdict: Verdict, model: Any, folder: Path, run: RunContext) -> str:
    """Write the micro-batches of a step and the weights that train, and return where, in words.

    Args:
        model: the policy, unwrapped; None where its weights are sharded.
        folder: the run's output folder.
    """
    place = folder / KEPT_FOLDER / f"step-{verdict.step}"
    if len(list(place.parent.glob("step-*"))) >= _MOST_KEPT and not place.exists():
        return f"{_MOST_KEPT} batches are kept already, so this one is not."
    batches = []
    for micro_batch, _ in verdict.micro_batches:
        tensors = {}
        for name, value in micro_batch.items():
            if isinstance(value, Tensor):
                tensors[name] = value.detach().cpu()
        batches.append(tensors)
    try:
        place.mkdir(parents=True, exist_ok=True)
        torch.save({"step": verdict.step, "batches": batches}, place / f"rank-{run.rank}.pt")
        if run.rank == 0 and model is not None:
            torch.save(dict(readable_weights(model, trains=True)), place / _WEIGHTS)
    # The message about the numbers matters more than a disk that is full.
    except OSError as error:
        return f"The batch could not be kept in {place} ({error.strerror})."
    return (
        f"The batch is kept in {place}; `grpo-hf replay {folder}` shows the loss and the gradient "
        "of each row."
    )


def read_batch(folder: Path, step: int | None = None) -> KeptBatch:
    """Return a kept batch of a run.

    Args:
        folder: the run's output folder.
        step: by default the last that was kept.

    Raises:
        DataError: there is none.
    """
    places = {}
    for place in (folder / KEPT_FOLDER).glob("step-*"):
        places[int(place.name.removeprefix("step-"))] = place
    check_folder(folder)
    if not places:
        raise DataError(
            f"{folder} has no batch to replay: a run keeps one when the loss, a gradient or a "
            "number of the rollout is NaN or infinite (logits that nothing can be sampled of "
            "leave none)."
        )
    if step is None:
        step = max(places)
    if step not in places:
        known = ", ".join(map(str, sorted(places)))
        raise DataError(f"{folder} has no batch of step {step}. Give --step one of {known}.")
    batches: list[dict[str, Any]] = []
    for file in sorted(places[step].glob("rank-*.pt"), key=lambda file: (len(file.name), file)):
        batches += torch.load(file, map_location="cpu", weights_only=True)["batches"]
    weights: dict[str, Tensor] = {}
    if (places[step] / _WEIGHTS).is_file():
        weights = torch.load(places[step] / _WEIGHTS, map_location="cpu", weights_only=True)
    return KeptBatch(step, batches, weights)


@dataclass(frozen=True)
class ReplayedRow:
    """One row of a kept batch, computed again.

    Args:
        micro_batch, row: where it was.
        text: the beginnings of prompt and completion.
        loss: of the row alone.
        gradient_norm: of that loss.
        wrong: the tensors of the row that are not finite, among them gradients by name.
    """

    micro_batch: int
    row: int
    text: str
    loss: float
    gradient_norm: float
    wrong: list[str]


def replay_rows(
    batches: Sequence[dict[str, Any]],
    loss_of: Callable[[Any], Tensor],
    model: Any,
    tokenizer: Any,
) -> list[ReplayedRow]:
    """Compute the loss and the gradient of each row of a kept batch by itself.

    Args:
        loss_of: from a micro-batch to its loss.
        model: the policy with the weights of the step.
    """
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    replayed = []
    for place, batch in enumerate(batches):
        for row in range(len(batch["prompt_ids"])):
            piece: Any = select(batch, [row])  # type: ignore[arg-type]
            wrong = []
            for name, words in OF_ROLLOUT.items():
                if name in piece and not finite_entries(piece, name).all():
                    wrong.append(words)
            loss = loss_of(piece)
            if not torch.isfinite(loss):
                wrong.append("the loss")
            norm = 0.0
            if loss.requires_grad:
                weights = [weight for _, weight in named]
                gradients = torch.autograd.grad(loss, weights, allow_unused=True)
                squares = []
                for (name, _), gradient in zip(named, gradients, strict=True):
                    if gradient is None:
                        continue
                    squares.append(gradient.double().square().sum())
                    if not torch.isfinite(gradient).all():
                        wrong.append(f"the gradient of {name}")
                norm = torch.stack(squares).sum().sqrt().item() if squares else 0.0
            text = row_text(batch, row, tokenizer)
            replayed.append(ReplayedRow(place, row, text, loss.item(), norm, wrong))
    return replayed
