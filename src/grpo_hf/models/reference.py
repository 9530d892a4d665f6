"""The reference of the KL term: where it comes from, and how a model is seen as it.

    new adapter         the base, with the adapters disabled
    continued adapter   a frozen copy `ref` of it; where PEFT cannot hold two such adapters, copies
                        of all weights that train, seen in their place
    no adapter          a frozen copy of the whole model

Weights of the base that train beside an adapter are kept twice, so that the base stays the base.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from ..config import option
from ..errors import ModelError
from ..process_log import get_logger
from ..run_context import RunTraits
from ..trl_seam import active_adapter, found_in_trl, name_or_path, replaced_in_trl
from .adapters import add_role, keep_trainable
from .kept_weights import (
    base_weights_that_train,
    keep_base,
    keep_start,
    kept_weights,
    role_weights,
)

# It speaks in the main process alone.
logger = get_logger(__name__)

_MEGABYTE = 1e6


def made_here(model: Any, args: Any) -> AbstractContextManager[None]:
    """Keep TRL, for the block that builds a trainer, from making a reference of its own.

    TRL 1.16 copies the adapter `default`, and fails where the policy has another name or an option
    of which PEFT takes one adapter. Without an adapter it reads the model's files again, which may
    be gone, or lack tokens that were added since.

    Args:
        model: what the user gave to the trainer.
        args: of the run. Inside the block β is 0 where the policy is an adapter.
    """
    # TRL refuses this setting with an adapter, by a message of its own.
    has_adapter = isinstance(model, PeftModel)
    if args.beta == 0 or (has_adapter and args.sync_ref_model):
        return nullcontext()
    if has_adapter:
        return _without_kl_term(args)
    # ZeRO-3 may have cut the weights already.
    whole = isinstance(model, PreTrainedModel) and not is_deepspeed_zero3_enabled()
    if whole and option(args, "reference") == "initial":
        name = "create_model_from_path"
        return replaced_in_trl(name, partial(_copied_or_read, model, found_in_trl(name)))
    return nullcontext()


@contextmanager
def _without_kl_term(args: Any) -> Iterator[None]:
    beta = args.beta
    args.beta = 0.0
    try:
        yield
    finally:
        args.beta = beta


def _copied_or_read(
    model: PreTrainedModel, read: Callable[..., Any], *positional: Any, **named: Any
) -> Any:
    """Return a copy of a model that does not train, or what TRL reads where it cannot be copied.

    Args:
        read: makes a model from files, with the other arguments.

    Raises:
        ModelError: there is no memory for it.
    """
    try:
        return frozen_copy(model)
    except ModelError:
        raise
    # What a user keeps on a model may have no copy: a lock, a tensor with a history.
    except Exception as error:
        logger.warning(
            "The reference of the KL term is read from the model's files, as in TRL: the model as "
            "it was given cannot be copied (%s: %s).",
            type(error).__name__,
            error,
        )
        return read(*positional, **named)


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a model that does not train.

    Raises:
        ModelError: there is no memory for it.
        Exception: whatever a part of it raises that has no copy.
    """
    size = sum(weight.nbytes for weight in model.parameters()) / _MEGABYTE
    try:
        reference = copy.deepcopy(model)
    # On a CPU, torch raises a RuntimeError for a lack of memory.
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ModelError(
            f"the KL term needs a frozen copy of the model ({size:.0f} MB), which could not be "
            f"made ({reason}). Train an adapter, whose reference needs no copy, or set beta=0, "
            "which is TRL's default."
        ) from error
    logger.warning(
        "The reference of the KL term is a frozen copy of the model as it was given, %.0f MB (TRL "
        "reads the model's files again). With beta=0, TRL's default, there is none.",
        size,
    )
    return reference.requires_grad_(False).eval()


def prepare_policy(
    model: Any, reference_model: Any, args: Any, traits: RunTraits, continues_adapter: bool
) -> None:
    """Give the policy that TRL has built its reference, and keep it trainable.

    Args:
        model: the policy.
        reference_model: TRL's second model, or None.
        args: of the run: `beta` and `reference`.
        continues_adapter: whether the user gave the adapter, trained before.

    Raises:
        ModelError: a reference that does not fit, or a 4-bit base whose weights cannot train any
            more.
    """
    keep_trainable(model)
    if reference_model is not None and not traits.sharded_weights:
        _check_sizes(model, reference_model)
    if not isinstance(model, PeftModel):
        return
    beside = keep_base_copies(model, sharded=traits.sharded_weights)
    if not continues_adapter or args.beta == 0 or args.sync_ref_model:
        return
    if option(args, "reference") == "initial":
        make_start_the_reference(model, traits)
    else:
        _check_base_is_known(beside)
        drop_reference(model)


def keep_base_copies(model: PeftModel, *, sharded: bool) -> list[str]:
    """Keep copies of the base's own weights that train beside an adapter, and say so.

    Returns:
        The names of these weights.
    """
    if sharded:
        beside = list(base_weights_that_train(model))
        if beside:
            logger.warning(
                "Weights of the base that train beside the adapter: %s. FSDP and DeepSpeed shard "
                "them, so the reference keeps no copies and moves with them, as in TRL. Use "
                "bias='none', or plain processes (DDP).",
                _named(beside),
            )
        return beside
    known = kept_weights(model).base.size
    beside = keep_base(model)
    size = kept_weights(model).base.size - known
    if size > 0:
        logger.warning(
            "Weights of the base that train beside the adapter: %s. The reference, and the base "
            "with the adapter disabled, are read with copies of them as they are now (%.2f MB). In "
            "TRL the reference moves with them.",
            _named(beside),
            size / _MEGABYTE,
        )
    return beside


def _named(weights: list[str]) -> str:
    """Return how many weights there are, and the first of them."""
    return f"{len(weights)} ({weights[0]}{', ...' if len(weights) > 1 else ''})"


def _check_sizes(model: Any, reference_model: Any) -> None:
    """Check that a reference that TRL has read from files has the policy's sizes."""
    sizes = {name: tuple(weight.shape) for name, weight in reference_model.named_parameters()}
    for name, weight in model.named_parameters():
        if sizes.get(name, tuple(weight.shape)) != tuple(weight.shape):
            raise ModelError(
                f"the reference of the KL term is read from {name_or_path(model.config)}, and its "
                f"{name} is {sizes[name]}, the model's {tuple(weight.shape)}: were tokens added? "
                "Take reference='initial', a copy of the model as it is given, or save the model "
                "first and give that folder, or set beta=0."
            )


def _check_base_is_known(beside: list[str]) -> None:
    """Check that a continued adapter has left the base as it was, for a reference that is it."""
    if beside:
        raise ModelError(
            "reference 'base' needs the base as it was, and these weights of it train beside the "
            f"adapter that you continue: {_named(beside)}. Take reference='initial', the policy "
            "as it is now."
        )


def make_start_the_reference(model: PeftModel, traits: RunTraits) -> None:
    """Make the policy as it is now the reference, whatever its adapter is and is called.

    Raises:
        ConfigError: PEFT cannot hold the adapter twice, and weights are sharded.
    """
    kept_weights(model).start = None
    if _copied_to_ref(model):
        return
    traits.refuse_sharded_weights(
        "the KL term of this adapter", "keeps copies of all weights that train", "set beta=0"
    )
    keep_start(model)


def _copied_to_ref(model: PeftModel) -> bool:
    """Copy the policy to an adapter `ref`; return False where that is not the whole policy."""
    if model.active_adapter == "ref" or base_weights_that_train(model):
        return False
    drop_reference(model)
    try:
        reset_reference(model)
    # PEFT takes some tuners and options for one adapter of a model only, each with its own error.
    except Exception:
        drop_reference(model)
        return False
    return True


def _has_copy(model: Any) -> bool:
    """Return whether there is an adapter `ref` that is not the policy itself."""
    adapters = getattr(model, "peft_config", {})
    return "ref" in adapters and model.active_adapter != "ref"


@contextmanager
def as_reference(model: Any, adapter_name: str | None = None) -> Iterator[Any]:
    """See a PEFT model for a block as the reference that the KL term compares with.

    Args:
        adapter_name: what TRL calls the reference, which is decided here instead.
    """
    start = kept_weights(model).start
    if start is None:
        trains = [(weight, weight.requires_grad) for weight in model.parameters()]
        with active_adapter(model, "ref" if _has_copy(model) else None):
            # PEFT takes these off, and FSDP2 notes in a run's first forward, which may be this one,
            # of what type gradients are.
            for weight, requires_grad in trains:
                weight.requires_grad_(requires_grad)
            yield model
    else:
        # The adapter stays on, with the weights that it had.
        with start.in_place():
            yield model


def drop_reference(model: Any) -> None:
    """Delete the frozen copy `ref`, if there is one, so that the reference is the base alone."""
    if _has_copy(model):
        model.delete_adapter("ref")


def reset_reference(model: PeftModel) -> None:
    """Make the policy as it is now the reference: π_ref ← π_θ.

    The reference becomes a frozen copy `ref` of the active adapter. The policy stays active, and
    the random numbers of the run are not used up.

    Source: arXiv 2402.03300, algorithm 1, line 3.
    """
    policy = model.active_adapter
    if "ref" not in model.peft_config:
        # PEFT initialises a new adapter on the CPU, with the generator of the run.
        with torch.random.fork_rng(devices=[]):
            add_role(model, "ref", model.peft_config[policy])
    weights = role_weights(model, policy).values()
    for copy_of, weight in zip(role_weights(model, "ref").values(), weights, strict=True):
        # PEFT's new adapters are float32, and the policy may be something else.
        copy_of.data = copy_of.data.to(weight).copy_(weight.data)
