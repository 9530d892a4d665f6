"""PPO's critic V_ψ, for comparison with GRPO: an adapter and a scalar head on the frozen base.

    V_ψ(q, o_<t) = w · h_ψ(q, o_<t)
    L = Σ (V_ψ(q, o_<t) − R_t)² / tokens,    R_t = Â_t + V_t

h_ψ is the base's last hidden state, (H,), read through the critic's adapter; w is the head, (H,).
R_t is the λ-return, with V_t as it was before the fit.

GRPO needs no critic. This one is here so that training without a critic can be compared with
training with one, on the same base, prompts and rewards (DeepSeekMath, arXiv 2402.03300, section
5.2). The reward of a completion is earned by its last token. The KL term stays in the loss, as in
GRPO's equation 3; PPO would subtract it from the reward. A resumed run begins with a new head and a
new optimizer, because a checkpoint keeps the critic's adapter alone.

Shapes: B completions of this process, P and C the widths of prompts and completions, H the hidden
size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from peft import LoraConfig, PeftModel
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from ..config import option
from ..data.batching import parts
from ..errors import ConfigError, ModelError
from ..models import adapters, value_head
from ..models.kept_weights import role_weights
from ..models.random_state import own_random_numbers
from ..run_context import RunTraits
from ..trl_seam import Batch
from .advantages import gae

# PEFT saves the critic's adapter in a folder of this name, inside the policy's.
ADAPTER = "critic"
# Completions per step of the critic's optimizer, and per forward that only reads values.
BATCH = 32
# The default that transformers 5.23 has for the policy.
MAX_GRAD_NORM = 1.0
# Keeps tokens of equal advantages from being divided by 0.
_WHITENING_EPS = 1e-8


@dataclass(frozen=True)
class CriticSettings:
    """How a critic judges and learns.

    Args:
        learning_rate: of its own AdamW.
        gamma: the discount per token, γ.
        lam: λ; with 1 a return is what the rest of the completion earned, with 0 the reward of
            the token plus what the critic expects after it.
        seed: decides the first weights, and the order in which completions are learned from.
    """

    learning_rate: float
    gamma: float
    lam: float
    seed: int


def check_critic(model: Any, traits: RunTraits) -> None:
    """Check that a critic can stand beside a policy.

    Raises:
        ModelError: the policy is no LoRA adapter on a base.
        ConfigError: sharded weights, or a model that reads images.
    """
    if not isinstance(model, PeftModel) or not isinstance(model.active_peft_config, LoraConfig):
        raise ModelError(
            "advantage_estimator 'gae' puts its critic on the frozen base as a LoRA adapter beside "
            "the policy's, and this policy is none. Train one (--use_peft true, or a peft_config), "
            "or use advantage_estimator 'group'."
        )
    if traits.reads_images:
        raise ConfigError(
            "advantage_estimator 'gae' is for text, and this model reads images. Use "
            "advantage_estimator 'group'."
        )
    traits.refuse_sharded_weights(
        "advantage_estimator 'gae'",
        "reads whole weights through its critic",
        "use advantage_estimator 'group'",
    )


def build_critic(
    args: Any, model: Any, accelerator: Accelerator, traits: RunTraits
) -> "Critic | None":
    """Return the critic that `advantage_estimator="gae"` asks for, beside the policy's adapter.

    Raises:
        ModelError, ConfigError: see `check_critic`.
    """
    if option(args, "advantage_estimator") != "gae":
        return None
    check_critic(model, traits)
    settings = CriticSettings(
        learning_rate=option(args, "critic_learning_rate"),
        gamma=option(args, "gae_gamma"),
        lam=option(args, "gae_lambda"),
        seed=args.seed,
    )
    return Critic(model, accelerator, settings)


class Critic:
    """The values of a policy's completions, learned from each rollout.

    The policy's weights, and the run's random numbers, stay as they are.
    """

    def __init__(
        self, model: PeftModel, accelerator: Accelerator, settings: CriticSettings
    ) -> None:
        self._model = model
        self._accelerator = accelerator
        self._settings = settings
        # A run with a critic begins with the same policy as one without it.
        with own_random_numbers(settings.seed):
            adapters.add_role(model, ADAPTER, value_head.role_config(model))
            self.head = value_head.new_head(model).to(accelerator.device)
        # Values of 0 make the first advantages the rewards themselves.
        torch.nn.init.zeros_(self.head.weight)
        self._weights = [
            *role_weights(model, ADAPTER).values(),
            *self.head.parameters(),
        ]
        self._optimizer = torch.optim.AdamW(
            self._weights, lr=settings.learning_rate, weight_decay=0.0
        )

    def advantages(self, batch: Batch, rewards: Tensor, step: int) -> tuple[Tensor, float]:
        """Return PPO's advantages of a rollout's tokens, then learn from the rollout.

        The advantages are whitened: mean 0 and deviation 1 over the tokens of all processes. A
        completion whose reward is NaN has advantage 0, and the critic does not learn from it.

        Args:
            batch: the rollout, B rows.
            rewards (B,): of whole completions; NaN for None.
            step: optimizer steps that the policy has made.

        Returns:
            The advantages, (B, C), and the mean squared error of the values before this fit.
        """
        judged = ~rewards.isnan()[:, None]
        mask = batch["completion_mask"] * batch.get("tool_mask", 1) * judged  # (B, C)
        # Read before the fit: a return that moves with the values would have no fixed target.
        values = self._read_values(batch)
        # The reward of a completion is earned by its last token, one in each row.
        last = mask.cumsum(1).eq(mask.sum(1, keepdim=True)) & mask.bool()  # (B, C)
        earned = last * rewards.nan_to_num(0.0)[:, None]
        raw = gae(values, earned, mask, self._settings.gamma, self._settings.lam)
        # The target is raw + values, so the error of the values is raw itself.
        count, error = self._total(torch.stack([mask.sum(), (raw.square() * mask).sum()]))
        # No token counts where no completion could be judged.
        loss = (error / count.clamp(min=1)).item()
        self._fit(batch, raw + values, mask, self._settings.seed + step)
        return self._whitened(raw, mask), loss

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs beside the adapter: head and optimizer."""
        return {"head": self.head.state_dict(), "optimizer": self._optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state; the adapter is loaded with the policy's."""
        self.head.load_state_dict(state["head"])
        self._optimizer.load_state_dict(state["optimizer"])

    def _read_values(self, batch: Batch) -> Tensor:
        """Return V before each token of each completion, (B, C), without gradients."""
        rows = list(range(len(batch["completion_ids"])))
        chunks = []
        with torch.no_grad(), adapters.seen_through(self._model, ADAPTER):
            for chunk in parts(rows, BATCH):
                chunks.append(self._values(batch, chunk))
        return torch.cat(chunks)

    def _values(self, batch: Batch, rows: list[int]) -> Tensor:
        """Return V before each token of some completions, (rows, C)."""
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)[rows]  # (rows, P+C)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)[rows]
        # The model without its language-model head, whose logits nobody needs here.
        base = adapters.causal_model(self._model).base_model
        # Prompts are padded on the left, so positions count the tokens that are there.
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        with self._accelerator.autocast():
            read = base(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
        width = batch["completion_ids"].shape[1]
        # Shifted by one: the state before a token is the last one that has not read it.
        states = read.last_hidden_state[:, -width - 1 : -1]
        # The head is float32; half precision would round the errors that it learns from.
        return self.head(states.float()).squeeze(-1)

    def _fit(self, batch: Batch, returns: Tensor, mask: Tensor, seed: int) -> None:
        """Learn from each completion once; gradients are those of the tokens of all processes."""
        with own_random_numbers(seed):
            order = torch.randperm(len(mask)).tolist()
            with torch.enable_grad(), adapters.seen_through(self._model, ADAPTER, train=True):
                # Every process has B rows, so all of them reduce equally often.
                for rows in parts(order, BATCH):
                    count = self._total(mask[rows].sum()).clamp(min=1)
                    error = (self._values(batch, rows) - returns[rows]).square() * mask[rows]
                    (error.sum() / count).backward()
                    self._descend()

    def _descend(self) -> None:
        """Make one step of the optimizer with the gradients of all processes together."""
        for weight in self._weights:
            # DDP does not know the critic, so its gradients are added up here. They are already
            # divided by the tokens of all processes. A weight that the base's states do not go
            # through has none, on any process.
            if weight.grad is not None:
                weight.grad.copy_(self._total(weight.grad))
        # After the sum, so that all processes clip by the same norm and stay equal.
        clip_grad_norm_(self._weights, MAX_GRAD_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _whitened(self, advantages: Tensor, mask: Tensor) -> Tensor:
        """Return advantages with mean 0 and sample deviation 1 over the tokens that count, (B, C).

        Implementations of PPO do the same.
        """
        count, total = self._total(torch.stack([mask.sum().float(), (advantages * mask).sum()]))
        centred = (advantages - total / count.clamp(min=1)) * mask
        variance = self._total(centred.square().sum()) / (count - 1).clamp(min=1)
        return centred / (variance + _WHITENING_EPS).sqrt()

    def _total(self, tensor: Tensor) -> Tensor:
        return self._accelerator.reduce(tensor, "sum")
