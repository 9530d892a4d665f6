"""Two checks of the reference: the untouched policy is where it is, and the frozen weights stay what they were."""

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TYPE_CHECKING

import torch
from peft import PeftModel

from ..config import option
from ..errors import ReferenceDriftError
from .adapters import as_reference, role_weights

if TYPE_CHECKING:
    from ..trainer import GRPOTrainer

KL_AT_START = 1e-6

KL_AT_START_HALF = 1e-3  # in bf16 DoRA's renormalisation of the weights alone can cost this much

_PROBE_TOKENS = 64


@contextmanager
def guarded(trainer: "GRPOTrainer", *, fresh: bool) -> Iterator[None]:
    """Check the reference before training (`fresh` runs) and the frozen weights after it.

    Sharded weights (FSDP, DeepSpeed) cannot be read one by one here and are not checked. Neither is a copy `ref` that
    may change, by resets or because a checkpoint brings its own, nor a critic, which learns.

    Raises:
        ReferenceDriftError: the KL of the untouched policy is not 0, or frozen weights changed during training.
    """
    if not isinstance(trainer.model, PeftModel) or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        yield
        return
    if fresh and trainer.beta != 0 and not _starts_elsewhere(trainer):
        check_kl_at_start(trainer)
    moving = ["critic"] if fresh and option(trainer.args, "reference_reset_every") is None else ["critic", "ref"]
    before = frozen_digest(trainer.model, moving)
    yield
    if frozen_digest(trainer.accelerator.unwrap_model(trainer.model), moving) != before:
        raise ReferenceDriftError(
            "the frozen weights changed during training, so the reference moved with the policy and every KL of this "
            "run is wrong. Something wrote into the base: look for merge_adapter(), a callback or a custom optimizer."
        )


def _starts_elsewhere(trainer: "GRPOTrainer") -> bool:
    """Whether policy and reference differ at step 0 by design: an adapter held to the base, or soft prompts."""
    held_to_base = getattr(trainer.args, "reference", "initial") == "base" and trainer.continues_adapter
    return held_to_base or trainer.model.active_peft_config.is_prompt_learning


def check_kl_at_start(trainer: "GRPOTrainer") -> None:
    """Check on a few tokens that policy and reference agree before the first update.

    KL is equation 4 of DeepSeekMath (arXiv 2402.03300), averaged over at most 64 tokens; dropout is off.

    Raises:
        ReferenceDriftError: it is above 1e-6 (1e-3 in half precision).
    """
    tokens = min(_PROBE_TOKENS, trainer.model.get_input_embeddings().num_embeddings)
    ids = torch.arange(tokens, device=trainer.accelerator.device)[None]  # (1, T): any text shows a difference
    model, training = trainer.model, trainer.model.training
    arguments = (model, ids, torch.ones_like(ids), ids.size(1) - 1)
    model.eval()
    try:
        with torch.no_grad(), trainer.compute_loss_context_manager():
            policy = trainer._get_per_token_logps_and_entropies(*arguments)[0].double()
            with as_reference(model):
                difference = trainer._get_per_token_logps_and_entropies(*arguments)[0].double() - policy
    finally:
        model.train(training)
    kl = (difference.exp() - difference - 1).mean().item()
    half = trainer.args.bf16 or trainer.args.fp16 or model.dtype in (torch.bfloat16, torch.float16)
    allowed = KL_AT_START_HALF if half else KL_AT_START
    if not kl <= allowed:
        raise ReferenceDriftError(
            f"KL between the untouched policy and its reference is {kl:.2e} at step 0; it has to be 0 (at most "
            f"{allowed:g}). The adapter does not start as a no-op: use a PEFT initialisation that does "
            "(init_lora_weights=True), or hold a continued adapter to its own start (reference='initial')."
        )


def frozen_digest(model: Any, moving: Iterable[str] = ()) -> str:
    """A digest of the bytes of every weight that does not train with the policy, without adapters that may change."""
    skipped = {name for adapter in moving for name in role_weights(model, adapter)}
    frozen = [p.detach() for name, p in model.named_parameters() if not p.requires_grad and name not in skipped]
    with ThreadPoolExecutor() as threads:  # hashing releases the GIL
        digests = list(threads.map(_tensor_digest, frozen))
    return hashlib.blake2b(b"".join(digests)).hexdigest()


def _tensor_digest(tensor: torch.Tensor) -> bytes:
    raw: Any = tensor.contiguous().reshape(-1).view(torch.uint8).cpu().numpy()
    return hashlib.blake2b(raw, digest_size=16).digest()
