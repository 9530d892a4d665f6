"""The objective of GRPO and of its relatives, written to be compared with the papers.

The trainer's loss is TRL's. This file has the same mathematics in a few pure functions: for people
to read, and for the tests to compare with TRL's loss, in value and in gradient.

B completions o_1 .. o_B, padded to T tokens; |o_i| is the number of tokens of o_i. A
log-probability is the natural logarithm of the probability of a sampled token, given the prompt q
and the tokens before it:

    logps       (B, T)          log π_θ(o_it | q, o_i,<t)  the policy, the only one with a gradient
    old_logps   (B, T)          log π_old                  the policy that sampled the completions
    ref_logps   (B, T)          log π_ref                  the frozen reference
    advantages  (B,) or (B, T)  Â_it                       one per completion, or one per token
    mask        (B, T)          1 (or True) on the tokens of o_i, 0 on padding

Values at padded positions have to be finite; they do not change any result.
"""

from torch import Tensor

from ..errors import ConfigError, did_you_mean

LOSS_TYPES = ("grpo", "dr_grpo", "dapo", "bnpo")
LEVELS = ("token", "sequence")


def importance_ratio(
    logps: Tensor, old_logps: Tensor, mask: Tensor, *, level: str = "token"
) -> Tensor:
    """Return the importance ratio: the policy's probability divided by that under π_old.

        token     ρ_it = π_θ(o_it | q, o_i,<t) / π_old(o_it | q, o_i,<t)  (B, T)  GRPO, 2402.03300
        sequence  s_i  = (π_θ(o_i | q) / π_old(o_i | q))^(1/|o_i|)        (B, 1)  GSPO, 2507.18071

    Args:
        logps, old_logps, mask (B, T): see the top of this file.
        level: `"token"` or `"sequence"`. The numbers above are arXiv ids.

    Raises:
        ConfigError: `level` is unknown.
    """
    if level not in LEVELS:
        raise ConfigError(
            f"importance sampling level is {level!r}; expected one of {', '.join(LEVELS)}."
            f"{did_you_mean(level, LEVELS)}"
        )
    # In logarithms: a product of many probabilities would round to 0.
    log_ratio = logps - old_logps
    if level == "sequence":
        log_ratio = (log_ratio * mask).sum(1, keepdim=True) / _lengths(mask).unsqueeze(1)
    return log_ratio.exp()


def clipped_surrogate(
    ratio: Tensor, advantages: Tensor, *, epsilon_low: float = 0.2, epsilon_high: float = 0.2
) -> Tensor:
    """Return PPO's pessimistic surrogate, the first term of eq. 3 (arXiv 2402.03300).

        min( ρ Â, clip(ρ, 1 − ε_low, 1 + ε_high) Â )

    No gradient flows where the clipped term is the smaller one: where Â > 0 and ρ > 1 + ε_high, or
    Â < 0 and ρ < 1 − ε_low. The paper has one ε on both sides; a larger ε_high is DAPO's "clip
    higher" (arXiv 2503.14476).

    Args:
        ratio: (B, T), or (B, 1) for whole sequences.
        advantages: (B, T), or (B, 1) for one per completion.
    """
    clipped = ratio.clamp(1 - epsilon_low, 1 + epsilon_high)
    return (ratio * advantages).minimum(clipped * advantages)


def kl_estimate(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """Return an estimate of KL(π_θ ‖ π_ref) from each sampled token, (B, T).

    The estimate is unbiased and never negative.

        D_KL = π_ref/π_θ − log(π_ref/π_θ) − 1

    Source: arXiv 2402.03300, eq. 4; the "k3" of http://joschu.net/blog/kl-approx.html.
    """
    log_ratio = ref_logps - logps
    return log_ratio.exp() - log_ratio - 1


def grpo_loss(
    logps: Tensor,
    old_logps: Tensor,
    ref_logps: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    *,
    loss_type: str = "grpo",
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
    beta: float = 0.04,
    importance_sampling_level: str = "token",
    max_completion_length: int | None = None,
    num_items_in_batch: int | Tensor | None = None,
) -> Tensor:
    """Return the loss −J, a scalar to minimise.

    With j_it = min(ρ Â, clip(ρ) Â) − β D_KL for every token, J is

        grpo      1/B Σ_i 1/|o_i| Σ_t j_it   every completion has equal weight     eq. 3, 2402.03300
        dr_grpo   1/(B·L) Σ_i Σ_t j_it       L = max_completion_length, constant   2503.20783
        dapo      1/W Σ_i Σ_t j_it           every token of the window is equal    2503.14476
        bnpo      1/Σ_i|o_i| Σ_i Σ_t j_it    every token of these B rows is equal  TRL 1.16

    with the arXiv ids of the sources. W = num_items_in_batch is the number of tokens of the whole
    window: of all rows that one optimizer step sees. Where gradient accumulation splits a window
    into micro-batches of B rows, add up their losses for `dapo`, and average them for the others.

    At ρ = 1, token by token, the gradient of J in log π_θ(o_it) times the divisor above is
    Â + β (π_ref/π_θ − 1): the gradient coefficient of GRPO in the paper's unified paradigm (arXiv
    2402.03300, appendix A.1.6).

    Args:
        logps, old_logps, ref_logps, advantages, mask: see the top of this file. ref_logps may be
            None if beta is 0, because the reference then plays no part.
        loss_type: one of `LOSS_TYPES`.
        epsilon_low, epsilon_high: see `clipped_surrogate`.
        beta: the weight of D_KL; the paper's is 0.04.
        importance_sampling_level: "token" or "sequence", see `importance_ratio`.
        max_completion_length: L, in tokens; only `dr_grpo` reads it, and needs it.
        num_items_in_batch: W, in tokens; only `dapo` reads it. By default the tokens of `mask`.

    Raises:
        ConfigError: shapes do not fit, the loss or the level is unknown, or an argument that is
            needed is missing.
    """
    _check(logps, old_logps, ref_logps, advantages, mask)
    mask = mask.to(logps.dtype)
    ratio = importance_ratio(logps, old_logps, mask, level=importance_sampling_level)
    if advantages.dim() == 1:
        advantages = advantages.unsqueeze(1)  # (B, 1)
    objective = clipped_surrogate(
        ratio, advantages, epsilon_low=epsilon_low, epsilon_high=epsilon_high
    )
    # Without the KL term no reference is needed, which saves its forward pass.
    if beta != 0:
        if ref_logps is None:
            raise ConfigError(
                f"beta is {beta} and ref_logps is None; pass the reference's log-probs, or beta=0."
            )
        objective = objective - beta * kl_estimate(logps, ref_logps)
    # With a ratio per sequence and an advantage per completion the objective is (B, 1) until here.
    objective = objective * mask  # (B, T)
    return _averaged(objective, mask, loss_type, max_completion_length, num_items_in_batch)


def _averaged(
    objective: Tensor,
    mask: Tensor,
    loss_type: str,
    max_completion_length: int | None,
    num_items_in_batch: int | Tensor | None,
) -> Tensor:
    """Return −J from the j_it of each token, which are 0 on padding."""
    # A batch of empty completions has loss 0, not 0/0.
    tokens = mask.sum().clamp(min=1)
    match loss_type:
        case "grpo":
            return -(objective.sum(1) / _lengths(mask)).mean()
        case "dr_grpo":
            if max_completion_length is None:
                raise ConfigError(
                    "loss_type is 'dr_grpo' and max_completion_length is None; pass L, in tokens."
                )
            return -objective.sum() / (len(mask) * max_completion_length)
        case "dapo":
            return -objective.sum() / (tokens if num_items_in_batch is None else num_items_in_batch)
        # The divisor is the tokens of this micro-batch alone, so the result depends on the split.
        case "bnpo":
            return -objective.sum() / tokens
    raise ConfigError(
        f"loss_type is {loss_type!r}; expected one of {', '.join(LOSS_TYPES)}."
        f"{did_you_mean(loss_type, LOSS_TYPES)}"
    )


def _lengths(mask: Tensor) -> Tensor:
    # An empty completion adds 0, not 0/0.
    return mask.sum(1).clamp(min=1)  # (B,)


def _check(
    logps: Tensor, old_logps: Tensor, ref_logps: Tensor | None, advantages: Tensor, mask: Tensor
) -> None:
    if logps.dim() != 2:
        raise ConfigError(
            f"logps have shape {tuple(logps.shape)}; expected (B, T), a row per completion."
        )
    # These would otherwise broadcast against logps, and give a wrong number without an error.
    aligned = {"old_logps": old_logps, "ref_logps": ref_logps, "mask": mask}
    for name, tensor in aligned.items():
        if tensor is not None and tensor.shape != logps.shape:
            raise ConfigError(
                f"{name} has shape {tuple(tensor.shape)}; expected {tuple(logps.shape)}, the shape "
                "of logps."
            )
    if advantages.shape not in (logps.shape, logps.shape[:1]):
        raise ConfigError(
            f"advantages have shape {tuple(advantages.shape)}; expected {tuple(logps.shape[:1])}, "
            f"one per completion, or {tuple(logps.shape)}, one per token. A (N, G) tensor becomes "
            "the former with .flatten()."
        )
