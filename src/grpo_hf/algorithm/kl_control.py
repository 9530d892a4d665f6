"""A KL term that steers itself: its weight follows a target, and its reference follows the policy.

    e = clip((KL − target) / target, −0.2, 0.2),    β ← β (1 + 0.1 e)
    π_ref ← π_θ

The first line happens after every optimizer step (`target_kl`), the second after every N optimizer
steps (`reference_reset_every`). KL is one number per optimizer step, in nats per token, and the
same on all processes.
"""

import math
from typing import Any

from peft import PeftModel
from transformers import TrainerCallback

from ..config import option
from ..errors import ModelError
from ..models.kept_weights import base_weights_that_train, kept_weights
from ..models.reference import reset_reference
from ..run_context import RunTraits
from ..trl_seam import KLTerm

# K_β of arXiv 1909.08593, section 2.2.
GAIN = 0.1
# The error is clipped to ±0.2, so β moves by at most 2% a step.
MAX_ERROR = 0.2

# The key under which a checkpoint keeps β, beside the callbacks that have a class name there.
_SAVED_AS = "adaptive_beta"


def adapted_beta(beta: float, kl: float, target: float) -> float:
    """Return β after an optimizer step whose policy was `kl` away from its reference.

        e = clip((KL − target) / target, −0.2, 0.2),    β ← β (1 + K_β e),    K_β = 0.1

    Source: arXiv 1909.08593, section 2.2.

    >>> adapted_beta(0.5, kl=0.09, target=0.1)
    0.495
    >>> adapted_beta(0.5, kl=7.0, target=0.1)  # the error is clipped
    0.51
    """
    error = min(max((kl - target) / target, -MAX_ERROR), MAX_ERROR)
    return beta * (1 + GAIN * error)


def check_reference_resets(model: Any, traits: RunTraits) -> None:
    """Check that a policy can become the reference after some optimizer steps.

    Raises:
        ModelError: the policy is no adapter, which is what a reset copies, or more than an adapter.
        ConfigError: the weights are sharded.
    """
    if not isinstance(model, PeftModel):
        raise ModelError(
            "reference_reset_every copies the adapter, and this model has none. Train one "
            "(--use_peft true, or a peft_config), or use TRL's --sync_ref_model true "
            "--ref_model_mixup_alpha 1 --ref_model_sync_steps N."
        )
    beside = list(base_weights_that_train(model))
    # Their copies are in no checkpoint, so a resumed run would have another reference.
    if beside or kept_weights(model).start is not None:
        raise ModelError(
            "reference_reset_every copies the adapter, and this policy is more than PEFT can hold "
            f"twice ({beside[0] if beside else type(model.active_peft_config).__name__}). Train "
            "LoRA with bias='none' and nothing beside it, or leave reference_reset_every out."
        )
    traits.refuse_sharded_weights(
        "reference_reset_every", "copies whole weights", "leave reference_reset_every out"
    )


def kl_callbacks(args: Any, term: KLTerm, model: Any, traits: RunTraits) -> list[TrainerCallback]:
    """Return the callbacks that steer a run's KL term as its settings ask.

    Args:
        args: `target_kl` and `reference_reset_every`, `None` for neither.
        term: the KL term of the loss.
        model: the policy, unwrapped.

    Raises:
        ModelError, ConfigError: see `check_reference_resets`.
    """
    callbacks: list[TrainerCallback] = []
    target_kl = option(args, "target_kl")
    every = option(args, "reference_reset_every")
    if target_kl is not None:
        callbacks.append(AdaptiveBeta(term, target_kl))
    if every is not None:
        # Before training, so that a run does not fail at its first reset.
        check_reference_resets(model, traits)
        callbacks.append(ReferenceReset(model, every))
    return callbacks


class AdaptiveBeta(TrainerCallback):
    """Move β after each optimizer step, and log as `beta` the value that the step had.

    A resumed run goes on with the β of its checkpoint. transformers keeps in a checkpoint whatever
    stands in `state.stateful_callbacks`. It would also rebuild an `ExportableState` from there by
    its constructor, which a callback that reaches into a trainer does not survive, so this is none.
    """

    def __init__(self, term: KLTerm, target_kl: float) -> None:
        self._term = term
        self._target_kl = target_kl

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take up β where a checkpoint left it."""
        # A fresh run has no entry, and leaves its first β there. Checkpoints of version 0.1.0 have
        # it under the name of the class.
        first = state.stateful_callbacks.get("AdaptiveBeta", self._state())
        saved = state.stateful_callbacks.setdefault(_SAVED_AS, first)
        self._term.beta = saved["attributes"]["beta"]

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Steer β by the KL of this step."""
        # Logged before it moves: this is the weight that the step was computed with.
        self._term.log()
        kl = self._term.kl_of_step()
        # A step that was left out because of its numbers says nothing about the KL.
        if math.isfinite(kl):
            self._term.beta = adapted_beta(self._term.beta, kl, self._target_kl)
        state.stateful_callbacks[_SAVED_AS] = self._state()

    def _state(self) -> dict[str, Any]:
        # The form in which transformers 5.23 keeps the state of a callback.
        return {"args": {}, "attributes": {"beta": self._term.beta}}


class ReferenceReset(TrainerCallback):
    """Make the policy the reference after every N optimizer steps, for the rollouts that follow.

    Updates that are left on an earlier rollout keep the reference that it was scored with.
    """

    def __init__(self, model: PeftModel, every: int) -> None:
        self._model = model
        self._every = every

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Copy the policy's adapter every N steps."""
        if state.global_step % self._every == 0:
            reset_reference(self._model)
