"""The objective is compared with numbers worked out by hand and with the papers' identities.

TRL's own loss is then compared with the objective.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from grpo_hf.algorithm.objective import (
    LEVELS,
    LOSS_TYPES,
    clipped_surrogate,
    grpo_loss,
    importance_ratio,
    kl_estimate,
)
from grpo_hf.errors import ConfigError

LENGTHS = (11, 1, 7, 4, 11, 0, 9, 2)  # tokens of each completion; one is empty
B, T = len(LENGTHS), max(LENGTHS)
EPSILON_LOW, EPSILON_HIGH, BETA = 0.2, 0.28, 0.04

Batch = dict[str, Tensor]
Loss = Callable[[Batch], Tensor]


def doubles(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random_batch(seed: int, *, per_token: bool = False) -> Batch:
    """Return a ragged batch after some updates: π_θ has left π_old and π_ref.

    Log-probabilities are float64, and `logps` is a leaf.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    logps = -2 + normal(B, T)
    drift = 0.3 * normal(B, T) + 0.4 * doubles(1, 1, -1, -1, 1, 1, -1, -1).unsqueeze(1)
    # Rows that drifted up and rows that drifted down have advantages of either sign.
    signs = doubles(1, -1, 1, -1, 1, -1, 1, -1)
    return {
        "logps": logps.requires_grad_(),
        "old_logps": (logps - drift).detach(),
        "ref_logps": (logps + 0.5 * normal(B, T)).detach(),
        "advantages": normal(B, T) if per_token else signs * (0.1 + normal(B).abs()),
        "mask": (torch.arange(T) < torch.tensor(LENGTHS).unsqueeze(1)).long(),
    }


def rows_of(batch: Batch, rows: slice) -> Batch:
    part = {name: tensor[rows] for name, tensor in batch.items()}
    return part | {"logps": part["logps"].detach().requires_grad_()}


def value_and_gradient(loss: Loss, batch: Batch) -> tuple[Tensor, Tensor]:
    logps = batch["logps"].detach().requires_grad_()
    value = loss(batch | {"logps": logps})
    (gradient,) = torch.autograd.grad(value, logps)
    return value.detach(), gradient


@pytest.fixture(scope="module")
def trl_trainer(tmp_path_factory: pytest.TempPathFactory) -> GRPOTrainer:
    """A TRL trainer on a model that never runs.

    The tests put log-probabilities in the place of its forward pass.
    """
    words = Tokenizer(
        models.WordLevel({"<pad>": 0, "<end>": 1, "one": 2, "two": 3}, unk_token="<pad>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<end>"
    )
    config = LlamaConfig(
        vocab_size=4,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        pad_token_id=0,
    )
    return GRPOTrainer(
        model=LlamaForCausalLM(config),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(
            output_dir=str(tmp_path_factory.mktemp("trl")),
            per_device_train_batch_size=2,
            num_generations=2,
            beta=0.0,  # else TRL loads a reference model by name; each test sets its own
            use_bias_correction_kl=False,
            use_cpu=True,
            bf16=False,
            report_to="none",
        ),
        train_dataset=Dataset.from_list([{"prompt": "one"}]),
        processing_class=tokenizer,
    )


@pytest.fixture
def trl_loss(trl_trainer: GRPOTrainer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Loss]:
    """Return a function that makes a loss of settings: `trl_loss(loss_type=..., ...)`.

    That loss is TRL's own `_compute_loss` with these settings, as a function of a batch.
    """

    def with_settings(
        *,
        loss_type: str,
        importance_sampling_level: str = "token",
        beta: float = BETA,
        accumulation: int = 1,
        window_tokens: int = sum(LENGTHS),
    ) -> Loss:
        settings = {
            "loss_type": loss_type,
            "importance_sampling_level": importance_sampling_level,
            "beta": beta,
            "epsilon_low": EPSILON_LOW,
            "epsilon_high": EPSILON_HIGH,
            "max_completion_length": T + 5,
            "current_gradient_accumulation_steps": accumulation,
        }
        for name, value in settings.items():
            monkeypatch.setattr(trl_trainer, name, value, raising=False)
        monkeypatch.setattr(trl_trainer.args, "steps_per_generation", accumulation)
        trl_trainer.model.train()

        def loss(batch: Batch) -> Tensor:
            forward = (batch["logps"], torch.zeros_like(batch["logps"]), None)
            monkeypatch.setattr(
                trl_trainer, "_get_per_token_logps_and_entropies", lambda *_, **__: forward
            )
            inputs = {
                "prompt_ids": torch.ones(len(batch["mask"]), 1, dtype=torch.long),
                "prompt_mask": torch.ones(len(batch["mask"]), 1, dtype=torch.long),
                "completion_ids": torch.ones_like(batch["mask"]),
                "completion_mask": batch["mask"],
                "old_per_token_logps": batch["old_logps"],
                "ref_per_token_logps": batch["ref_logps"],
                "advantages": batch["advantages"],
                "num_items_in_batch": torch.tensor(window_tokens),
            }
            return GRPOTrainer._compute_loss(trl_trainer, trl_trainer.model, inputs)

        return loss

    return with_settings


def our_loss(**settings: Any) -> Loss:
    clip = {"epsilon_low": EPSILON_LOW, "epsilon_high": EPSILON_HIGH}
    return lambda batch: grpo_loss(**batch, **clip, max_completion_length=T + 5, **settings)


# One token, π_θ = 0.5. The reference has 0.25: π_ref/π_θ = 1/2, so D_KL = 1/2 + ln 2 − 1 and
# ∂(−D_KL)/∂logπ_θ = −1/2.
KL = math.log(2) - 0.5
ONE_TOKEN = [
    # π_old, Â, surrogate, its gradient in log π_θ
    (0.5, 3.0, 3.0, 3.0),  # ρ = 1: Â itself
    (0.4, 2.0, 2.4, 0.0),  # ρ = 1.25 clips to 1.2: min(2.5, 2.4)
    (0.4, -2.0, -2.5, -2.5),  # the same ρ with Â < 0 is not clipped: min(−2.5, −2.4)
    (0.8, -2.0, -1.6, 0.0),  # ρ = 0.625 clips to 0.8: min(−1.25, −1.6)
    (0.8, 2.0, 1.25, 1.25),  # the same ρ with Â > 0 is not clipped: min(1.25, 1.6)
]


@pytest.mark.parametrize(("old", "advantage", "surrogate", "slope"), ONE_TOKEN)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "bnpo"])
def test_one_token_by_hand(
    old: float, advantage: float, surrogate: float, slope: float, level: str, loss_type: str
):
    batch = {
        "logps": doubles([0.5]).log(),
        "old_logps": doubles([old]).log(),
        "ref_logps": doubles([0.25]).log(),
        "advantages": doubles(advantage),
        "mask": doubles([1]),
    }
    value, gradient = value_and_gradient(
        lambda b: grpo_loss(**b, beta=0.04, loss_type=loss_type, importance_sampling_level=level),
        batch,
    )
    assert value.item() == pytest.approx(-(surrogate - 0.04 * KL), rel=1e-12)
    assert gradient.item() == pytest.approx(-(slope - 0.04 / 2), rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"loss_type": "grpo"}, -(2 - 1) / 2),  # the mean of a completion, then of both
        ({"loss_type": "dr_grpo", "max_completion_length": 10}, -(2 - 3) / (2 * 10)),
        ({"loss_type": "dapo"}, -(2 - 3) / 4),
        ({"loss_type": "dapo", "num_items_in_batch": 20}, -(2 - 3) / 20),
        ({"loss_type": "bnpo", "num_items_in_batch": 20}, -(2 - 3) / 4),
    ],
)
def test_each_normalisation_by_hand(settings: dict[str, Any], expected: float):
    """Completions of 1 and 3 tokens with Â = 2 and −1 at ρ = 1: every token contributes its Â."""
    logps = torch.full((2, 3), -1.0, dtype=torch.float64)
    mask = torch.tensor([[True, False, False], [True, True, True]])
    loss = grpo_loss(logps, logps, None, doubles(2, -1), mask, beta=0, **settings)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_the_sequence_ratio_is_the_geometric_mean_over_the_tokens_of_the_completion():
    logps, old_logps = doubles([0.5, 0.8, 0.9]).log(), doubles([0.25, 0.1, 0.1]).log()
    ratio = importance_ratio(logps, old_logps, doubles([1, 1, 0]), level="sequence")
    torch.testing.assert_close(ratio, doubles([math.sqrt(2 * 8)]))


def test_the_kl_estimate_is_unbiased_and_never_negative():
    """Σ_v π_θ(v) · D_KL(v) is KL(π_θ ‖ π_ref), for distributions over a small vocabulary."""
    generator = torch.Generator().manual_seed(0)
    logps, ref_logps = (
        torch.randn(2, 50, 7, generator=generator, dtype=torch.float64).mul(2).log_softmax(-1)
    )
    estimate = kl_estimate(logps, ref_logps)
    exact = torch.nn.functional.kl_div(ref_logps, logps, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close((logps.exp() * estimate).sum(-1), exact, rtol=1e-10, atol=0)
    assert (estimate >= 0).all()
    assert kl_estimate(logps, logps).count_nonzero() == 0


def test_the_gradient_at_ratio_one_is_the_gradient_coefficient_of_the_paper():
    """−1/(B |o_i|) · (Â + β (π_ref/π_θ − 1)) on every token: arXiv 2402.03300, appendix A.1.6."""
    batch = random_batch(0, per_token=True)
    batch["old_logps"] = batch["logps"].detach()
    _, gradient = value_and_gradient(our_loss(beta=BETA), batch)
    ref_over_policy = batch["ref_logps"].exp() / batch["logps"].detach().exp()
    coefficient = batch["advantages"] + BETA * (ref_over_policy - 1)
    lengths = doubles(*LENGTHS).clamp(min=1).unsqueeze(1)
    torch.testing.assert_close(
        gradient, -coefficient * batch["mask"] / (B * lengths), rtol=1e-10, atol=1e-15
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("beta", [BETA, 0.0])
@pytest.mark.parametrize("per_token", [False, True], ids=["outcome", "per-token"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_trl_has_the_same_loss_and_gradient(
    trl_loss: Callable[..., Loss],
    loss_type: str,
    level: str,
    per_token: bool,
    beta: float,
    seed: int,
):
    batch = random_batch(seed, per_token=per_token)
    settings = {"loss_type": loss_type, "importance_sampling_level": level, "beta": beta}
    value, gradient = value_and_gradient(our_loss(**settings), batch)
    trl_value, trl_gradient = value_and_gradient(trl_loss(**settings), batch)

    assert clipped(batch, level) == {"low", "high"}
    torch.testing.assert_close(trl_value, value, rtol=1e-10, atol=0)
    torch.testing.assert_close(trl_gradient, gradient, rtol=1e-10, atol=1e-15)
    assert trl_gradient.abs().max() > 1e-3


def clipped(batch: Batch, level: str) -> set[str]:
    """Return the sides on which the clip stops the gradient of some token."""
    mask = batch["mask"].bool()
    ratio = importance_ratio(
        batch["logps"].detach(), batch["old_logps"], batch["mask"], level=level
    )
    advantages = batch["advantages"]
    if advantages.dim() == 1:
        advantages = advantages.unsqueeze(1)
    low = (ratio < 1 - EPSILON_LOW) & (advantages < 0) & mask
    high = (ratio > 1 + EPSILON_HIGH) & (advantages > 0) & mask
    return {side for side, where in (("low", low), ("high", high)) if where.any()}


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_micro_batches_add_up_to_the_window_as_in_trl(
    trl_loss: Callable[..., Loss], loss_type: str
):
    batch = random_batch(3)
    whole, whole_gradient = value_and_gradient(our_loss(loss_type=loss_type), batch)
    halves = [rows_of(batch, slice(0, B // 2)), rows_of(batch, slice(B // 2, B))]
    our_half_loss = our_loss(loss_type=loss_type, num_items_in_batch=sum(LENGTHS))
    trl_half_loss = trl_loss(loss_type=loss_type, accumulation=2)
    ours = [value_and_gradient(our_half_loss, half) for half in halves]
    trls = [value_and_gradient(trl_half_loss, half) for half in halves]

    # TRL itself divides by the number of steps.
    steps = 1 if loss_type == "dapo" else 2
    torch.testing.assert_close(sum(value for value, _ in ours) / steps, whole)
    torch.testing.assert_close(sum(value for value, _ in trls), whole)
    torch.testing.assert_close(
        torch.cat([gradient for _, gradient in ours]) / steps, whole_gradient
    )
    torch.testing.assert_close(torch.cat([gradient for _, gradient in trls]), whole_gradient)


def test_bnpo_alone_depends_on_how_the_window_is_split():
    batch = random_batch(3)
    halves = [rows_of(batch, slice(0, B // 2)), rows_of(batch, slice(B // 2, B))]
    loss = our_loss(loss_type="bnpo")
    assert (sum(loss(half) for half in halves) / 2).item() != pytest.approx(
        loss(batch).item(), rel=1e-3
    )


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_padding_counts_for_nothing(loss_type: str):
    batch = random_batch(4)
    value, gradient = value_and_gradient(our_loss(loss_type=loss_type), batch)
    padding = batch["mask"] == 0
    for name in ("logps", "old_logps", "ref_logps"):
        batch[name] = batch[name].detach().masked_fill(padding, -7.0 if name == "logps" else -1.0)
    other_value, other_gradient = value_and_gradient(our_loss(loss_type=loss_type), batch)
    torch.testing.assert_close(other_value, value)
    torch.testing.assert_close(other_gradient, gradient)
    assert gradient[padding].count_nonzero() == 0


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_batch_of_empty_completions_has_loss_zero(loss_type: str):
    batch = random_batch(5) | {"mask": torch.zeros(B, T)}
    assert our_loss(loss_type=loss_type)(batch).item() == 0


def test_asymmetric_clipping_uses_each_bound_on_its_side():
    ratio, up, down = doubles([0.5, 1.5]), doubles([1.0]), doubles([-1.0])
    bounds = {"epsilon_low": 0.1, "epsilon_high": 0.3}
    torch.testing.assert_close(clipped_surrogate(ratio, up, **bounds), doubles([0.5, 1.3]))
    torch.testing.assert_close(clipped_surrogate(ratio, down, **bounds), doubles([-0.9, -1.5]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"loss_type": "drgrpo"},
            r"'drgrpo'; expected one of grpo, dr_grpo, dapo, bnpo\. Did you mean 'dr_grpo'\?",
        ),
        ({"loss_type": "dr_grpo"}, "max_completion_length is None; pass L"),
        (
            {"importance_sampling_level": "tokens"},
            r"'tokens'; expected .* sequence\. Did you mean 'token'\?",
        ),
        ({"ref_logps": None}, r"beta is 0\.04 and ref_logps is None"),
        ({"logps": torch.zeros(3)}, r"logps have shape \(3,\); expected \(B, T\)"),
        ({"old_logps": torch.zeros(2, 4)}, r"old_logps has shape \(2, 4\); expected \(2, 3\)"),
        ({"ref_logps": torch.zeros(2, 1)}, r"ref_logps has shape \(2, 1\); expected \(2, 3\)"),
        ({"mask": torch.zeros(3)}, r"mask has shape \(3,\); expected \(2, 3\)"),
        (
            {"advantages": torch.zeros(2, 1)},
            r"shape \(2, 1\); expected \(2,\), one per completion, or \(2, 3\)",
        ),
    ],
)
def test_errors_say_what_came_and_what_was_expected(change: dict[str, Any], message: str):
    zeros = torch.zeros(2, 3)
    arguments = dict.fromkeys(("logps", "old_logps", "ref_logps", "mask"), zeros)
    arguments["advantages"] = torch.zeros(2)
    with pytest.raises(ConfigError, match=message):
        grpo_loss(**(arguments | change))
