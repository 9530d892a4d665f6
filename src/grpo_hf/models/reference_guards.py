"""Two checks of the reference: an untouched policy equals it, and frozen weights do not change.

How log-probabilities are computed is up to the trainer, which hands over a function.
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from peft import LoraConfig, PeftModel

from ..config import option
from ..errors import ReferenceDriftError
from ..process_log import get_logger
from ..run_context import PolicyState
from .adapters import flags_kept
from .digests import digest_of
from .kept_weights import kept_weights, role_weights
from .measuring import unreported
from .precision import computes_in_half
from .random_state import own_random_numbers
from .reference import as_reference, keep_base_copies

# It speaks in the main process alone.
logger = get_logger(__name__)

# In nats per token; float32 gives exactly 0 or rounding far below.
KL_AT_START = 1e-6
# In bf16 the renormalisation of DoRA's weights alone can cost this much.
KL_AT_START_HALF = 1e-3
PROBE_TOKENS = 64

_DROPOUT = (
    "Dropout is on: the untouched policy is %.2g nats per token away from its reference, and "
    "without dropout 0. TRL scores it with dropout, so the KL term starts there and penalises "
    "noise. Set disable_dropout=True, or lora_dropout=0, for a KL that starts at 0."
)
_OTHER_FILES = (
    "The reference is not the policy as it starts: the KL between them is %.2g nats per token at "
    "step 0. TRL reads the reference from the files of the model's name, and the model is another "
    "by now. reference='initial' takes a copy of the model as it was given."
)
_NO_NO_OP = (
    "An adapter of %s changes the model from the start: the untouched policy is %.2g nats a token "
    "away from its reference, the base, and the KL term holds it to that. An initialisation that "
    "starts as a no-op would begin at 0."
)


def guard_reference(policy: PolicyState, args: Any) -> AbstractContextManager[None]:
    """Check the KL of an untouched policy, and return what checks frozen weights after training.

    Sharded weights cannot be read one by one here, and are not checked.

    Args:
        policy: before training.
        args: of the run: `reference` and `reference_reset_every`.

    Returns:
        A context manager to train in; see `frozen_weights_checked`.

    Raises:
        ReferenceDriftError: the KL is not 0, and a LoRA adapter is the reason.
    """
    if policy.sharded_weights:
        return nullcontext()
    if not isinstance(policy.model, PeftModel):
        if policy.fresh and policy.reference_model is not None:
            with unreported(args):
                check_kl_at_start(policy)
        return nullcontext()
    # What a user has unfrozen since the trainer was made.
    keep_base_copies(policy.model, sharded=False)
    # Policy and reference differ by design for a continued adapter that is held to the base, and
    # for soft prompts, which are no no-op at their start.
    held_to_base = option(args, "reference") == "base" and policy.continues_adapter
    starts_elsewhere = held_to_base or policy.model.active_peft_config.is_prompt_learning
    if policy.fresh and policy.has_kl_term and not starts_elsewhere:
        with unreported(args):
            check_kl_at_start(policy)
    # A critic learns. A copy `ref` is reset, or comes with the checkpoint that a run resumes.
    resets = option(args, "reference_reset_every") is not None
    moving = ["critic"] if policy.fresh and not resets else ["critic", "ref"]
    return frozen_weights_checked(policy.model, moving, is_reference=policy.has_kl_term)


def check_kl_at_start(policy: PolicyState) -> None:
    """Check on a few tokens that policy and reference agree before the first update.

    They are read as the run reads them, so with dropout where it has dropout. Dropout alone makes
    them differ: that is said, and no mistake. What cannot be read here is said as well.

    Raises:
        ReferenceDriftError: the KL of a LoRA adapter is above 1e-6, or above 1e-3 in half
            precision, without dropout, too.
    """
    half = computes_in_half(policy.model, autocast=policy.autocast)
    allowed = KL_AT_START_HALF if half else KL_AT_START
    try:
        as_in_the_run = kl_at_start(policy, dropout=True)
        # Written so that a KL of NaN is no agreement.
        if as_in_the_run <= allowed:
            return
        without_dropout = kl_at_start(policy, dropout=False)
    # A model, an adapter or a head that is not known here may raise anything.
    except Exception as error:
        logger.warning(
            "The KL between the untouched policy and its reference is not checked: a few tokens "
            "could not be scored (%s: %s).",
            type(error).__name__,
            error,
        )
        return
    adapter = getattr(policy.model, "active_peft_config", None)
    if without_dropout <= allowed:
        logger.warning(_DROPOUT, as_in_the_run)
    elif adapter is None:
        logger.warning(_OTHER_FILES, without_dropout)
    elif isinstance(adapter, LoraConfig):
        raise ReferenceDriftError(
            f"KL between the untouched policy and its reference is {without_dropout:.2e} at step "
            f"0; it has to be 0 (at most {allowed:g}). The adapter does not start as a no-op: use "
            "a PEFT initialisation that does (init_lora_weights=True), or hold a continued adapter "
            "to its own start (reference='initial')."
        )
    else:
        logger.warning(_NO_NO_OP, type(adapter).__name__, without_dropout)


def kl_at_start(policy: PolicyState, *, dropout: bool) -> float:
    """Return the KL per token between a policy and its reference on a few tokens, in nats.

    It is equation 4 of DeepSeekMath (arXiv 2402.03300), averaged over at most 64 tokens.
    """
    model = policy.model
    size = model.config.get_text_config().vocab_size
    # Any text shows a difference: these are the first tokens of the vocabulary.
    ids = torch.arange(min(PROBE_TOKENS, size), device=model.device)[None]  # (1, T)
    block = (ids, torch.ones_like(ids), ids.size(1) - 1)
    with torch.no_grad(), flags_kept(model), own_random_numbers(0):
        model.train(dropout)
        # In float64, so that exp(d) - d - 1 of a tiny d is not lost in rounding.
        scores = policy.log_probs(model, *block).double()
        if policy.reference_model is not None:
            reference = policy.log_probs(policy.reference_model, *block).double()
        else:
            with as_reference(model):
                reference = policy.log_probs(model, *block).double()
    difference = reference - scores
    return (difference.exp() - difference - 1).mean().item()


@contextmanager
def frozen_weights_checked(
    model: Any, moving: Iterable[str] = (), *, is_reference: bool = True
) -> Iterator[None]:
    """Check after a block that no weight that was frozen before it has changed in it.

    Args:
        model: a PEFT model, unwrapped, with whole weights.
        moving: adapters that do not train with the policy and may change all the same, such as a
            critic, or a reference that is reset.
        is_reference: whether the run has held the policy to these weights.

    Raises:
        ReferenceDriftError: something wrote into the base, and it is the reference. Where it is
            not, that is only said.
    """
    names = frozen_names(model, moving)
    before = frozen_digest(model, names)
    yield
    if frozen_digest(model, names) == before:
        return
    if not is_reference:
        logger.warning(
            "The frozen weights changed during training. At beta 0 no KL was computed from them, "
            "but the adapter now belongs to a base that is not the one on disk."
        )
        return
    raise ReferenceDriftError(
        "the frozen weights changed during training, so the reference moved with the policy "
        "and every KL of this run is wrong. Something wrote into the base: look for "
        "merge_adapter(), a callback or a custom optimizer."
    )


def frozen_names(model: Any, moving: Iterable[str] = ()) -> set[str]:
    """Return the names of the weights that do not train now.

    Args:
        moving: adapters that are left out.
    """
    skipped: set[str] = set()
    for adapter in moving:
        skipped |= role_weights(model, adapter).keys()
    names = set()
    for name, weight in model.named_parameters():
        if not weight.requires_grad and name not in skipped:
            names.add(name)
    return names


def frozen_digest(model: Any, names: Collection[str]) -> str:
    """Return a digest of the bytes of weights, and of the copies that the reference reads.

    Args:
        names: of the weights.
    """
    frozen = []
    for name, weight in model.named_parameters():
        # What is sparse, or offloaded, has no bytes here to read.
        if name in names and weight.layout == torch.strided and not weight.is_meta:
            frozen.append(weight.detach())
    kept = kept_weights(model)
    # The reference reads these as well.
    frozen += kept.base.tensors + (kept.start.tensors if kept.start else [])
    return digest_of(frozen)
