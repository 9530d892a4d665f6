"""A KL term that steers itself: its weight follows a target, and its reference follows the policy.

    e = clip((KL − target) / target, −0.2, 0.2),    β ← β (1 + 0.1 e)      after every optimizer step (`target_kl`)
    π_ref ← π_θ                                           after every N of them (`reference_reset_every`)

KL is a number per optimizer step, in nats per token; all processes see the same one.
"""

from statistics import mean
from typing import Any, ClassVar

from peft import PeftModel
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from ..config import option
from ..errors import ConfigError, ModelError
from ..models import adapters

GAIN = 0.1  # K_β of the paper
MOST = 0.2  # so β moves by 2% a step at most


def adapted_beta(beta: float, kl: float, target: float) -> float:
    """β after a step whose policy was `kl` away from its reference.

        e = clip((KL − target) / target, −0.2, 0.2),    β ← β (1 + K_β e),    K_β = 0.1

    Source: arXiv 1909.08593, section 2.2.

    >>> adapted_beta(0.5, kl=0.09, target=0.1)  # a tenth too near: down by a hundredth
    0.495
    >>> adapted_beta(0.5, kl=7.0, target=0.1)  # clipped
    0.51
    """
    error = min(max((kl - target) / target, -MOST), MOST)
    return beta * (1 + GAIN * error)


def install(trainer: Any) -> None:
    """Add what the settings ask for to a trainer.

    Raises:
        ModelError: `reference_reset_every` without an adapter, which is what it copies.
        ConfigError: `reference_reset_every` with sharded weights.
    """
    if option(trainer.args, "target_kl") is not None:
        # Bound to the class: transformers rebuilds a stateful callback from JSON, where a trainer cannot be.
        trainer.add_callback(type("AdaptiveBeta", (AdaptiveBeta,), {"trainer": trainer}))
    if option(trainer.args, "reference_reset_every") is None:
        return
    if not isinstance(trainer.model, PeftModel):
        raise ModelError(
            "reference_reset_every copies the adapter, and this model has none. Train one (--use_peft true, or a "
            "peft_config), or use TRL's --sync_ref_model true --ref_model_mixup_alpha 1 --ref_model_sync_steps N."
        )
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ConfigError(
            "reference_reset_every copies whole weights, and FSDP and DeepSpeed shard them. Train on plain processes "
            "(DDP: accelerate launch --multi_gpu), or leave reference_reset_every out."
        )
    trainer.add_callback(ReferenceReset(trainer))


class AdaptiveBeta(TrainerCallback, ExportableState):
    """Move β after each optimizer step; logged as `beta`, the one that the step had. Checkpoints keep it."""

    trainer: ClassVar[Any]

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take up a resumed run's β, also where `restore_callback_states_from_checkpoint` is off, as it is by default.

        transformers 5.23: the states of a checkpoint are in `stateful_callbacks`, and saving wants an entry there.
        """
        saved = state.stateful_callbacks.setdefault("AdaptiveBeta", self.state())
        self.trainer.beta = saved["attributes"]["beta"]

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """TRL 1.16 appends one KL per micro-batch, reduced over all processes, and reads `beta` for each loss."""
        metrics = self.trainer._metrics["train"]
        kl = mean(metrics["kl"][-self.trainer.current_gradient_accumulation_steps :])
        metrics["beta"].append(self.trainer.beta)
        self.trainer.beta = adapted_beta(self.trainer.beta, kl, args.target_kl)

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"beta": self.trainer.beta}}


class ReferenceReset(TrainerCallback):
    """Make the policy the reference after every N optimizer steps, for the rollouts that follow.

    Updates that are left on an earlier rollout keep the reference that it was scored with.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % args.reference_reset_every == 0:
            adapters.reset_reference(self.trainer.accelerator.unwrap_model(self.trainer.model))
