"""PPO's critic V_ψ, for comparison with GRPO: an adapter and a scalar head on the policy's frozen base.

    V_ψ(q, o_<t) = w · h_ψ(q, o_<t)       h_ψ: the base's last hidden state (H,) through the adapter; w: the head (H,)
    L = Σ (V_ψ(q, o_<t) − R_t)² / tokens   R_t = Â_t + V_t, the λ-return, with V of before the fit

GRPO is what one trains with; this is here so that "without a critic" can be held against "with one" on the same base,
prompts and rewards (DeepSeekMath, arXiv 2402.03300, section 5.2). The reward of a completion is earned by its last
token. The KL term stays in the loss, as in GRPO's equation 3, and is not taken from the reward as PPO would. A resumed
run begins with a head and an optimizer of its own: checkpoints keep the adapter alone.

B completions of this process, P and C: widths of prompts and completions, H hidden size.
"""

from typing import Any

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from ..config import option
from ..data.batching import parts
from ..errors import ConfigError, ModelError
from ..models import adapters
from ..models.random_state import own_random_numbers
from ..reward_models import files
from .advantages import gae

ADAPTER = "critic"
BATCH = 32  # completions per step of the critic's optimizer


def of(trainer: Any) -> "Critic | None":
    """The critic of a trainer whose `advantage_estimator` is "gae", with its adapter beside the policy's.

    Raises:
        ModelError: the policy is no LoRA adapter on a base.
        ConfigError: sharded weights, or a model that reads images.
    """
    if option(trainer.args, "advantage_estimator") != "gae":
        return None
    model = trainer.model
    if not isinstance(model, PeftModel) or not isinstance(model.active_peft_config, LoraConfig):
        raise ModelError(
            "advantage_estimator 'gae' puts its critic on the frozen base as a LoRA adapter beside the policy's, and "
            "this policy is none. Train one (--use_peft true, or a peft_config), or use advantage_estimator 'group'."
        )
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled or trainer._is_vlm:
        raise ConfigError(
            "advantage_estimator 'gae' is for text and whole weights: no images, no FSDP, no DeepSpeed. Train on plain "
            "processes (DDP: accelerate launch --multi_gpu), or use advantage_estimator 'group'."
        )
    return Critic(trainer)


class Critic:
    """The values of a trainer's completions, learned from each rollout; the policy and its random numbers stay."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        model, device = trainer.model, trainer.accelerator.device
        with own_random_numbers(trainer.args.seed):
            adapters.add_role(model, ADAPTER, files.role_config(model))
            self.head = files.new_head(model).to(device)
        torch.nn.init.zeros_(self.head.weight)  # values of 0: the first advantages are rewards
        self._weights = [*adapters.role_weights(model, ADAPTER).values(), *self.head.parameters()]
        rate = option(trainer.args, "critic_learning_rate")
        self._optimizer = torch.optim.AdamW(self._weights, lr=rate, weight_decay=0.0)

    def advantages(self, batch: dict[str, Any], rewards: Tensor) -> Tensor:
        """PPO's advantages of a rollout's tokens, (B, C), and then a fit to their returns.

        They are whitened: mean 0 and deviation 1 over the tokens of all processes. A completion whose reward is NaN
        has advantage 0, and is not learned from. `critic/loss` logs the mean squared error before the fit.

        Args:
            batch: what TRL 1.16 keeps of a rollout, B rows.
            rewards (B,): of whole completions; NaN for None.
        """
        args = self._trainer.args
        mask = (
            batch["completion_mask"] * batch.get("tool_mask", 1) * ~rewards.isnan()[:, None]
        )  # (B, C)
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        rows = list(range(len(mask)))
        with torch.no_grad(), adapters.seen_through(model, ADAPTER):
            values = torch.cat([self._values(batch, chunk) for chunk in parts(rows, BATCH)])
        last = mask.cumsum(1).eq(mask.sum(1, keepdim=True)) & mask.bool()  # (B, C), one in each row
        earned = last * rewards.nan_to_num(0.0)[:, None]
        raw = gae(values, earned, mask, option(args, "gae_gamma"), option(args, "gae_lambda"))
        count, error = self._total(torch.stack([mask.sum(), (raw.square() * mask).sum()]))
        self._trainer._metrics["train"]["critic/loss"].append((error / count.clamp(min=1)).item())
        self._fit(batch, raw + values, mask, model)
        return self._whitened(raw, mask)

    def _values(self, batch: dict[str, Any], rows: list[int]) -> Tensor:
        """V before each token of these completions, (rows, C)."""
        trainer = self._trainer
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)[rows]  # (rows, P+C)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)[rows]
        model = adapters.causal_model(trainer.accelerator.unwrap_model(trainer.model)).base_model
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        with trainer.accelerator.autocast():
            read = model(
                input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
            )
        width = batch["completion_ids"].shape[1]
        return self.head(read.last_hidden_state[:, -width - 1 : -1].float()).squeeze(-1)

    def _fit(self, batch: dict[str, Any], returns: Tensor, mask: Tensor, model: PeftModel) -> None:
        """Once through the rollout; gradients are those of the tokens of all processes."""
        state = self._trainer.state
        with own_random_numbers(self._trainer.args.seed + state.global_step):
            order = torch.randperm(len(mask)).tolist()
            with torch.enable_grad(), adapters.seen_through(model, ADAPTER, train=True):
                for rows in parts(order, BATCH):
                    count = self._total(mask[rows].sum()).clamp(min=1)
                    error = (self._values(batch, rows) - returns[rows]).square() * mask[rows]
                    (error.sum() / count).backward()
                    for gradient in [
                        weight.grad for weight in self._weights if weight.grad is not None
                    ]:
                        gradient.copy_(self._total(gradient))
                    clip_grad_norm_(self._weights, 1.0)
                    self._optimizer.step()
                    self._optimizer.zero_grad()

    def _whitened(self, advantages: Tensor, mask: Tensor) -> Tensor:
        """Mean 0 and sample deviation 1 over the tokens that count, as PPO implementations do; (B, C)."""
        count, total = self._total(torch.stack([mask.sum().float(), (advantages * mask).sum()]))
        centred = (advantages - total / count.clamp(min=1)) * mask
        variance = self._total(centred.square().sum()) / (count - 1).clamp(min=1)
        return centred / (variance + 1e-8).sqrt()

    def _total(self, tensor: Tensor) -> Tensor:
        return self._trainer.accelerator.reduce(tensor, "sum")
