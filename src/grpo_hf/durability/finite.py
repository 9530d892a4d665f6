"""Find numbers that are not finite: those of a step before it moves the weights, and weights."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError, NotFiniteError
from ..run_context import RunContext
from ..update.micro_batches import loss_mask

# What kernels for a smallest and largest entry know; 4-bit and 8-bit weights are of other types.
_KNOWN_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# Numbers of a rollout that the loss is made from, and what messages call them.
OF_ROLLOUT = {
    "advantages": "the advantages",
    "old_per_token_logps": "the log-probabilities of the policy that sampled",
    "ref_per_token_logps": "the log-probabilities of the reference",
}


@dataclass(frozen=True)
class Verdict:
    """What is not finite in an optimizer step that has not been made yet.

    Args:
        step: the number of the step, from 1 on.
        losses: whether a loss is not finite, on any process.
        rollout: whether a number of `OF_ROLLOUT` is not finite, on any process.
        gradient: whether the norm of the gradient is not finite.
        micro_batches: those of this process, with the loss of each.
        in_a_row: how many steps in a row were like this one.
    """

    step: int
    losses: bool
    rollout: bool
    gradient: bool
    micro_batches: list[tuple[dict[str, Any], Tensor]]
    in_a_row: int


@dataclass
class StepNumbers:
    """The micro-batches of an optimizer step and their losses, until its gradient is known.

    References are kept and no copies: the trainer has the micro-batches of a rollout in memory.

    Args:
        most: how many micro-batches an optimizer step has. Older ones are forgotten, because losses
            may be computed outside of a training as well.
    """

    most: int
    _micro_batches: list[tuple[dict[str, Any], Tensor]] = field(default_factory=list)
    _in_a_row: int = 0

    def forget(self) -> None:
        """Forget a step that was not finished, before another training begins."""
        self._micro_batches.clear()

    def add(self, micro_batch: dict[str, Any], loss: Tensor) -> None:
        """Remember a micro-batch and its loss."""
        self._micro_batches.append((micro_batch, loss.detach()))
        del self._micro_batches[: -self.most]

    def judge(self, gradient_norm: Any, run: RunContext) -> Verdict | None:
        """Return what is not finite in this step on any process, or None, and forget the step.

        Every process gets the same answer. The device is waited for once.

        Args:
            gradient_norm: of all processes together; None where it is not known.
            run: `step` is the number of steps that were made.
        """
        seen, self._micro_batches = self._micro_batches, []
        here = _flags(seen, gradient_norm, run)
        losses, rollout, gradient = run.gather(here[None]).amin(0).tolist()
        if losses and rollout and gradient:
            self._in_a_row = 0
            return None
        self._in_a_row += 1
        return Verdict(
            run.step + 1, not losses, not rollout, not gradient, seen, in_a_row=self._in_a_row
        )


def _flags(
    seen: Sequence[tuple[dict[str, Any], Tensor]], gradient_norm: Any, run: RunContext
) -> Tensor:
    """Return whether losses, numbers of the rollout and the gradient are finite here, (3,) of 0/1.

    With a loss that is scaled for float16 a gradient may be infinite: the scaler leaves out that
    step itself, and tries a smaller scale.
    """
    accelerator = run.accelerator
    fine = torch.ones((), dtype=torch.bool, device=accelerator.device)
    losses, rollout, gradient = fine, fine, fine
    for micro_batch, loss in seen:
        losses = losses & torch.isfinite(loss).all()
        for name in OF_ROLLOUT.keys() & micro_batch.keys():
            rollout = rollout & finite_entries(micro_batch, name).all()
    if gradient_norm is not None and accelerator.scaler is None:
        # FSDP2 keeps it as a tensor that is spread over processes.
        whole = getattr(gradient_norm, "full_tensor", lambda: gradient_norm)()
        gradient = torch.isfinite(torch.as_tensor(whole, device=accelerator.device))
    return torch.stack([losses, rollout, gradient]).int()


def finite_entries(micro_batch: dict[str, Any], name: str) -> Tensor:
    """Return which numbers of a rollout are finite or do not count in the loss, (B,) or (B, C)."""
    finite = torch.isfinite(micro_batch[name])
    if finite.ndim == 1:
        return finite
    return finite | ~loss_mask(micro_batch).bool()  # type: ignore[arg-type]


def check_weights(model: Any, where: str, advice: str) -> None:
    """Check that the weights of a model that train are finite.

    Args:
        model: unwrapped.
        where: when this is checked, as in "after step 3".
        advice: what to do, and what was not overwritten.

    Raises:
        NotFiniteError: a weight is not; it names the first.
    """
    broken = first_broken(model, trains=True)
    if broken is not None:
        raise NotFiniteError(f"{where} the weight {broken} is NaN or infinite. {advice}")


def check_before_training(model: Any, reference_model: Any) -> None:
    """Check that the weights that a run begins with are finite, the frozen ones first.

    Args:
        model: the policy, unwrapped.
        reference_model: the second model of a run without an adapter, or None.

    Raises:
        ModelError: a weight is not; it says whose.
    """
    wholes = [(model, False, "the base model"), (model, True, "the policy, before any step,")]
    if reference_model is not None:
        wholes.append((reference_model, False, "the reference model"))
    for whole, trains, owner in wholes:
        broken = first_broken(whole, trains=trains)
        if broken is not None:
            raise ModelError(
                f"{owner} has a weight that is NaN or infinite: {broken}. Training is not the "
                f"reason. Load {whole.config.name_or_path or 'the model'} again from an intact "
                "copy, or in another dtype (a float16 copy of larger weights overflows)."
            )


def first_broken(model: Any, *, trains: bool) -> str | None:
    """Return the name of the first weight that is not finite, or None.

    Frozen weights may be infinite, as masks are that are kept as weights.

    Args:
        model: unwrapped.
        trains: whether to look at the weights that train, or at the frozen ones.
    """
    names, weights = [], []
    for name, weight in readable_weights(model, trains=trains):
        names.append(name)
        weights.append(weight)
    ends = extremes(weights)
    finite = (ends.isfinite() if trains else ~ends.isnan()).all(1).tolist()
    return None if all(finite) else names[finite.index(False)]


def largest_weight(model: Any) -> float | None:
    """Return the largest entry, without its sign, of the weights that train; None without any."""
    weights = []
    for _, weight in readable_weights(model, trains=True):
        weights.append(weight)
    return float(extremes(weights).abs().max()) if weights else None


def readable_weights(model: Any, *, trains: bool) -> Iterator[tuple[str, Tensor]]:
    """Yield names and weights that are floating-point numbers in memory, frozen or not."""
    # bitsandbytes may store 4 bits in floats, which FSDP needs; as numbers they mean nothing.
    packed = set()
    for module in model.modules():
        if hasattr(module, "quant_state"):
            packed.add(id(getattr(module, "weight", None)))
    for name, weight in model.named_parameters():
        if id(weight) in packed:
            continue
        # FSDP2 gives each process a part, which may be empty, and ZeRO-3 gives an empty weight.
        part = weight.to_local() if hasattr(weight, "to_local") else weight
        is_dense = part.layout == torch.strided and not part.is_meta
        kept = is_dense and part.dtype in _KNOWN_TYPES and part.numel()
        if kept and weight.requires_grad is trains:
            yield name, part.detach()


def extremes(tensors: Sequence[Tensor]) -> Tensor:
    """Return the smallest and the largest entry of each tensor, (N, 2), on the CPU.

    Both are NaN where an entry is NaN. No copy of a tensor is made.
    """
    found = torch.zeros(len(tensors), 2)
    places: dict[torch.device, list[int]] = defaultdict(list)
    for place, tensor in enumerate(tensors):
        places[tensor.device].append(place)
    for on_device in places.values():
        pairs = []
        for place in on_device:
            pairs.append(torch.stack(torch.aminmax(tensors[place])).float())
        # One copy for each device, because each of them waits for all that was begun there.
        found[on_device] = torch.stack(pairs).cpu()
    return found
