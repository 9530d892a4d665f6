"""Which way vLLM gets the weights of a policy, and what it cannot sample at all.

    adapter   vLLM holds the untouched base, and loads the policy's LoRA adapter beside it
    merged    TRL's way: all weights are sent, the adapter merged into them

What can be known without a model is decided before one is loaded.
"""

import importlib.util
from collections.abc import Mapping
from typing import Any

from ..config import option
from ..config_checks import check_engine
from ..errors import ConfigError

ADAPTER, MERGED = "adapter", "merged"

# The ranks that vLLM 0.32 has room for; an adapter is served with the next one above its own.
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

# What vLLM's LoRA does as PEFT does, or what a saved adapter no longer says. An option that is not
# among these, and not at its default, is not known to vLLM.
_KNOWN_OPTIONS = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
}
# Layers that vLLM keeps without an adapter, or reads in another way than the policy does.
_HEADS = ("lm_head", "embed", "wte", "score")


def choose_sync(args: Any, config: Any, *, quantized: bool = False, from_gguf: bool = False) -> str:
    """Return which way vLLM gets the weights, or refuse what it cannot sample.

    Args:
        args: of the run.
        config: of the policy's adapter, or None.
        quantized: whether the base is loaded in 4 or 8 bits.
        from_gguf: whether the base is read from a GGUF file.

    Returns:
        `"adapter"` or `"merged"`.

    Raises:
        ConfigError: a setting of vLLM's is not possible, the adapter cannot be served as was asked,
            the base cannot be in vLLM, or vLLM is not installed.
    """
    check_engine(args)
    reason = why_not_adapter(config)
    wish = option(args, "vllm_sync")
    if wish == ADAPTER and reason is not None:
        raise ConfigError(
            f"vllm_sync is 'adapter', and {reason}. Set --vllm_sync merged, which sends all "
            "weights to vLLM, or leave it out."
        )
    sync = wish or (MERGED if reason is not None else ADAPTER)
    if args.vllm_mode == "colocate":
        _check_base(quantized, from_gguf)
    elif quantized and sync == MERGED:
        raise ConfigError(
            "the base is quantised, and its weights cannot be sent to vLLM merged with an adapter "
            f"({reason or 'vllm_sync is merged'}). Train a plain LoRA with --vllm_sync adapter, or "
            "a base that is not quantised."
        )
    if (args.vllm_mode == "colocate" or sync == MERGED) and not _installed():
        raise ConfigError(
            "use_vllm is set, and vLLM is not installed here. Install it (pip install 'trl[vllm]')"
            ", sample by servers of your own (--vllm_mode server --vllm_sync adapter), which needs "
            "no vLLM here, or leave use_vllm out."
        )
    return sync


def why_not_adapter(config: Any) -> str | None:
    """Return why vLLM's LoRA cannot stand for an adapter, or None.

    Args:
        config: of PEFT, or None where all weights train.
    """
    if config is None:
        return "the policy has no adapter"
    # AdaLoRA's configuration is a LoRA's by its class, and its layers are not.
    kind = getattr(config.peft_type, "value", config.peft_type)
    if kind != "LORA":
        return f"the adapter is a {kind}, and vLLM serves LoRA alone"
    for name, value in vars(config).items():
        if name not in _KNOWN_OPTIONS and value not in (None, False, "none", [], {}):
            return f"vLLM's LoRA has no {name} ({name}={value!r})"
    # A name, several, or a pattern over whole names.
    targets = config.target_modules or []
    for target in [targets] if isinstance(targets, str) else targets:
        if any(head in target for head in _HEADS):
            return f"vLLM's LoRA is not for heads and embeddings (target_modules has {target!r})"
    rank = _largest_rank(config)
    if rank > _RANKS[-1]:
        return f"the adapter's rank is {rank}, and vLLM's LoRA takes {_RANKS[-1]} at most"
    return None


def served_rank(config: Any) -> int:
    """Return the rank that vLLM has to be started with for an adapter."""
    return min(rank for rank in _RANKS if rank >= _largest_rank(config))


def serve_command(base: str, config: Any, *, sync: str, port: int | None) -> str:
    """Return the command that starts a server for a policy.

    Args:
        base: name or folder.
        config: of the policy's adapter, or None.
        sync: which way the server gets weights.
        port: where it is not one of several addresses.
    """
    at = "" if port is None else f" --port {port}"
    options = "--logprobs-mode processed_logprobs"
    if sync == MERGED:
        transfer = """--weight-transfer-config '{"backend": "nccl"}'"""
        return (
            f"VLLM_SERVER_DEV_MODE=1 vllm serve {base}{at} {transfer} {options} --max-logprobs -1"
        )
    return (
        f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve {base}{at} --enable-lora "
        f"--max-lora-rank {served_rank(config)} {options}"
    )


def is_quantized(model: Any, settings: Mapping[str, Any] | None) -> bool:
    """Return whether a base is in 4 or 8 bits.

    Args:
        model: a model, or the name of one that is loaded with these settings.
    """
    if isinstance(model, str):
        return (settings or {}).get("quantization_config") is not None
    in_four = getattr(model, "is_loaded_in_4bit", False)
    return bool(in_four or getattr(model, "is_loaded_in_8bit", False))


def _largest_rank(config: Any) -> int:
    return max([config.r, *(config.rank_pattern or {}).values()])


def _check_base(quantized: bool, from_gguf: bool) -> None:
    """Refuse bases that vLLM cannot read from the files of the run, or not as the run does."""
    if quantized:
        raise ConfigError(
            "the base is quantised, and vLLM beside the training (vllm_mode colocate) would hold "
            "other weights than the policy has. Set --vllm_mode server and start servers of this "
            "base, leave out load_in_4bit, or leave out use_vllm."
        )
    if from_gguf:
        raise ConfigError(
            "vLLM reads the base from the model's folder, which has no weights but a GGUF file. "
            "Save it once as an ordinary model (save_pretrained) and train that, or leave out "
            "use_vllm."
        )


def _installed() -> bool:
    return importlib.util.find_spec("vllm") is not None
