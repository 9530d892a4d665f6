"""Load the base: its configuration, tokenizer and weights.

They come from a local folder, from the Hub, or from a GGUF file in one of them.
"""

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
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl import ModelConfig, get_peft_config, get_quantization_config

from ..errors import GrpoError, HubUnreachable, ModelError
from ..run_files import warn_once
from ..trl_seam import name_or_path
from .places import LOCAL_HELP, check_found, check_local

_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
# Tokenizers without a fast version have a vocabulary and no tokenizer.json.
_TOKENIZER_FILES = ("tokenizer*", "vocab*")


def read_model_config(
    name: str,
    *,
    revision: str = "main",
    gguf_file: str | None = None,
    trust_remote_code: bool = False,
    needs_weights: bool = True,
) -> Any:
    """Return the configuration of a local or Hub model, without reading its weights.

    Args:
        needs_weights: whether a folder has to hold weights as well.

    Raises:
        ModelError: no such folder or repository, or a folder without weights.
        HubUnreachable: the model is on the Hub, and the Hub does not answer.
    """
    check_local(name, "model", "config.json" if gguf_file is None else gguf_file)
    check_found(name, "model")
    folder = Path(name)
    if needs_weights and folder.is_dir() and not _holds_any(folder, _WEIGHTS):
        raise ModelError(
            f"{name}: the model folder holds no weights (*.safetensors, *.bin). Was it saved "
            "completely?"
        )
    _say_whose_code(name, trust_remote_code)
    with loading("model", name):
        return AutoConfig.from_pretrained(
            name, revision=revision, trust_remote_code=trust_remote_code, **_gguf(gguf_file)
        )


def generation_limit(name: str, *, revision: str = "main") -> int | None:
    """Return the most new tokens that a model is meant to generate, where its files say so."""
    try:
        config = GenerationConfig.from_pretrained(name, revision=revision)
    # A model need not have the file, and a Hub that does not answer is named by other readers.
    except (OSError, ValueError):
        return None
    limit: int | None = config.max_new_tokens
    return limit


def load_tokenizer(
    name: str,
    *,
    revision: str = "main",
    gguf_file: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a local or Hub model.

    It pads on the left, as generation needs it.

    Raises:
        ModelError: the folder holds no tokenizer.
        HubUnreachable: the model is on the Hub, and the Hub does not answer.
    """
    folder = Path(name)
    # A GGUF file holds its own tokenizer.
    if folder.is_dir() and gguf_file is None and not _holds_any(folder, _TOKENIZER_FILES):
        raise ModelError(
            f"{name}: the model folder holds no tokenizer (tokenizer.json, tokenizer_config.json). "
            "Save it there with tokenizer.save_pretrained(folder)."
        )
    _say_whose_code(name, trust_remote_code)
    with loading("tokenizer", name):
        tokenizer = AutoTokenizer.from_pretrained(
            name,
            revision=revision,
            trust_remote_code=trust_remote_code,
            padding_side="left",
            **_gguf(gguf_file),
        )
    # Many base models have no padding token. TRL chooses the same one.
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _say_whose_code(name: str, trust_remote_code: bool) -> None:
    """Say once, before it runs, that code of a model's repository may run."""
    if trust_remote_code:
        warn_once(
            f"trust_remote_code is set: Python code that comes with {name} runs on this machine, "
            "with your rights and outside of any sandbox."
        )


def load_base(
    args: ModelConfig, *, gguf_file: str | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Load the base from a local folder or the Hub, or from a GGUF file in one of them.

    Args:
        args: the name, and the precision: fp32, bf16, 4-bit or 8-bit.
        gguf_file: the GGUF file's name, if the weights are in one.
        trust_remote_code: whether code from the model's repository may run.

    Raises:
        ModelError: no such model, or a checkpoint that lacks weights. transformers would leave
            random weights in their place.
        HubUnreachable: the model is on the Hub, and the Hub does not answer.
    """
    options = _quantization(args)
    _say_whose_code(str(args.model_name_or_path), trust_remote_code)
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
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"{args.model_name_or_path}: {len(missing)} weights of {type(model).__name__} are not "
            f"in the checkpoint ({missing[0]}, ...), so they would be random. Is it a checkpoint "
            "of this architecture, and complete?"
        )
    return model if gguf_file is None else dequantized(model)


def _quantization(args: ModelConfig) -> dict[str, Any]:
    """Return the options of `from_pretrained` for a 4-bit or 8-bit base; none for another base."""
    quantization = get_quantization_config(args)
    if quantization is None:
        return {}
    options: dict[str, Any] = {"quantization_config": quantization}
    if torch.cuda.is_available():
        # As in TRL: each process quantises on its own GPU.
        options["device_map"] = {"": PartialState().local_process_index}
    return options


def dequantized(model: PreTrainedModel) -> PreTrainedModel:
    """Turn a model that was loaded from GGUF into an ordinary one, which trains and saves.

    transformers has already dequantised the weights, but the model and its configuration still name
    the GGUF quantiser; with it, transformers 5.23 refuses training and saving.
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
    """Return the last part of a model's name or folder."""
    name = model if isinstance(model, str) else name_or_path(model.config)
    return Path(name).name


def _gguf(gguf_file: str | None) -> dict[str, str]:
    if gguf_file is None:
        return {}
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(
            "a GGUF file needs the package 'gguf', which is missing: pip install 'grpo-hf[gguf]'."
        )
    return {"gguf_file": gguf_file}


def _holds_any(folder: Path, patterns: tuple[str, ...]) -> bool:
    """Return whether the folder holds a file whose name matches one of the patterns."""
    return any(any(folder.glob(pattern)) for pattern in patterns)


@contextmanager
def loading(what: str, name: str) -> Iterator[None]:
    """Turn the errors of reading or fetching a model into errors that say what to do.

    They tell apart a folder that cannot be read, a name that the Hub does not have, and a Hub that
    does not answer.

    Args:
        what: the word for it in messages, such as `model` or `tokenizer`.
        name: the folder, or the name on the Hub.

    Raises:
        ModelError: the folder cannot be read, or the Hub has no such repository.
        HubUnreachable: the Hub does not answer.
    """
    try:
        yield
    # RuntimeError is most often a lack of memory, which says nothing about the files.
    except (GrpoError, RuntimeError):
        raise
    # Every reader of configurations, tokenizers and weights raises errors of its own.
    except Exception as error:
        raise _explained(error, what, name) from error


def _explained(error: Exception, what: str, name: str) -> GrpoError:
    # The libraries' messages go on for pages; the first line says the most.
    reason = f"{type(error).__name__}: {error}".partition("\n")[0]
    if Path(name).is_dir():
        return ModelError(
            f"the {what} in {name} cannot be read ({reason}). Was it saved completely?"
        )
    # Before OSError, which transformers raises for an unknown repository as well.
    if _caused_by(error, RepositoryNotFoundError):
        return ModelError(
            f"{what} {name!r}: the Hub has no such repository, or it is private and you are not "
            "logged in (`hf auth login`)."
        )
    if isinstance(error, OSError):
        return HubUnreachable(f"{what} {name!r} could not be fetched from the Hub. {LOCAL_HELP}")
    return ModelError(f"{what} {name!r} cannot be loaded ({reason}).")


def _caused_by(error: BaseException | None, kind: type[BaseException]) -> bool:
    """Return whether the error, or one of the errors that led to it, is of a kind."""
    # Libraries raise their own error from the Hub's, sometimes several times.
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error is not None
