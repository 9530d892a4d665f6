"""A run's model for other programs: merged weights, a GGUF file, and the commands that serve it."""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel

from ..data.prompts import prompt_builder, prompt_token_ids
from ..errors import ConfigError, ModelError, OutputExistsError
from ..models import loading
from ..models.merging import merge
from ..rollout.vllm_sync import served_rank, why_not_adapter
from ..run_files import say
from ..run_folders import check_free
from .modelfile import modelfile
from .trained import (
    RunSettings,
    Weights,
    load_weights,
    no_bars_in_a_file,
    put_adapter,
    settings_of,
    tokenizer_of,
    weights_of,
)

SAFETENSORS, GGUF = "safetensors", "gguf"
_CONVERTER = "convert_hf_to_gguf.py"
# The folder of llama.cpp, as its own tools name it.
_CONVERTER_FOLDER = "LLAMA_CPP"
_HOW_TO_GET_IT = (
    "git clone --depth 1 https://github.com/ggml-org/llama.cpp && pip install -r "
    f"llama.cpp/requirements/requirements-convert_hf_to_gguf.txt; then give --converter "
    f"llama.cpp/{_CONVERTER}, or set {_CONVERTER_FOLDER} to its folder"
)
# A text on which base, adapter and merged weights are compared.
_PROBE = "Anna has 3 apples and buys 4 more. How many apples has she now?"
# Rounding that takes away more of what the adapter does is worth a word.
_NOTABLE_ERROR, _NOTABLE_LOSS = 0.1, 0.3
# Of a converter that fails, the last lines say why.
_LINES_OF_ERROR = 5


@dataclass(frozen=True)
class Export:
    """How a run is exported.

    Args:
        run: its output folder, or a checkpoint in it.
        to: the folder to write; by default `merged` or `gguf` in the run's folder.
        format: `safetensors` or `gguf`.
        dtype: of the weights; `auto` is that of the base's files.
        outtype: of the GGUF file, as llama.cpp's converter calls it.
        converter: that program, if it is not found by itself.
        base: the base model, if it has moved.
        trust_remote_code: whether code from the base's repository may run.
    """

    run: Path
    to: Path | None = None
    format: str = SAFETENSORS
    dtype: str = "auto"
    outtype: str = "f16"
    converter: Path | None = None
    base: str | None = None
    trust_remote_code: bool = False

    @property
    def folder(self) -> Path:
        """The folder that is written."""
        return self.to or self.run / ("merged" if self.format == SAFETENSORS else "gguf")


def export(asked: Export) -> Path:
    """Write the model of a run with the adapter in its weights, and say how it is served.

    Nothing is overwritten, and a folder is there only when it is complete.

    Returns:
        The folder.

    Raises:
        ConfigError: llama.cpp's converter is not found.
        ModelError: the adapter cannot be folded into the base, or the converter fails.
        OutputExistsError: the folder exists, or cannot be written.
    """
    no_bars_in_a_file()
    converter = converter_of(asked.converter) if asked.format == GGUF else None
    check_free(asked.folder)
    weights = weights_of(asked.run, asked.base)
    if weights.note:
        say(weights.note)
    settings = settings_of(asked.run)
    tokenizer = tokenizer_of(weights, settings, trust_remote_code=asked.trust_remote_code)
    name = asked.run.resolve().name
    with _written_whole(asked.folder) as folder:
        merged = folder if converter is None else folder / "merged"
        _write_merged(asked, weights, settings, tokenizer, merged)
        source = "."
        if converter is not None:
            source = f"./{name}-{asked.outtype}.gguf"
            say(f"converting to GGUF by {converter}")
            _convert(converter, merged, folder / source, asked.outtype)
            shutil.rmtree(merged)
        form, options = settings.form(tokenizer), settings.training["chat_template_kwargs"]
        text = modelfile(source, tokenizer, form, settings.sampling, options)
        (folder / "Modelfile").write_text(text, encoding="utf-8")
    _say_what_is_there(asked, weights, name)
    return asked.folder


@contextmanager
def _written_whole(folder: Path) -> Iterator[Path]:
    """Yield a folder beside, which takes the name at the end of the block, if all went well."""
    beside = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        yield beside
        # A temporary folder is its owner's alone.
        beside.chmod(0o755)
        beside.rename(folder)
    # Ours may be an OSError as well.
    except OutputExistsError:
        raise
    except OSError as error:
        raise OutputExistsError(
            f"{folder} cannot be written ({error.strerror or error}). Free space there, or give "
            "another --to."
        ) from error
    finally:
        if beside is not None:
            shutil.rmtree(beside, ignore_errors=True)


def _write_merged(
    asked: Export, weights: Weights, settings: RunSettings, tokenizer: Any, folder: Path
) -> None:
    """Write the model without an adapter, its tokenizer and its generation settings."""
    model = _loaded(asked, weights, settings)
    if isinstance(model, PeftModel):
        prompt = prompt_builder(settings.form(tokenizer))(_PROBE)
        options = settings.training["chat_template_kwargs"]
        (token_ids,) = prompt_token_ids([prompt], tokenizer, options)
        merged = merge(model.eval(), token_ids)
        model = merged.model
        if merged.error > _NOTABLE_ERROR or merged.lost > _NOTABLE_LOSS:
            say(
                f"note: in {_name_of(model.dtype)}, {merged.lost:.0%} of the weights that the "
                "adapter changes stay as they were, by rounding, and logits move by "
                f"{merged.error:.0%} of what the adapter moves them. --dtype float32 keeps all of "
                "it; so does serving the adapter beside its base."
            )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _loaded(asked: Export, weights: Weights, settings: RunSettings) -> Any:
    """Return the model in the precision that it is exported with."""
    trust: dict[str, Any] = {"trust_remote_code": asked.trust_remote_code}
    quantized = settings.model.load_in_4bit or settings.model.load_in_8bit
    from_gguf = settings.task.gguf_file is not None
    if weights.base is None or not quantized:
        # A GGUF file has no precision of its own to go by.
        auto = settings.model.dtype if from_gguf and weights.base else "auto"
        dtype = auto if asked.dtype == "auto" else asked.dtype
        args = replace(settings.model, dtype=dtype, load_in_4bit=False, load_in_8bit=False)
        return load_weights(weights, args, settings, **trust)
    bits = 4 if settings.model.load_in_4bit else 8
    args = replace(settings.model, model_name_or_path=weights.base)
    base = loading.load_base(args, **trust)
    dtype = _dtype_of_files(asked, weights.base, settings)
    say(
        f"the run trained on {bits}-bit weights: they are turned back into {_name_of(dtype)} as "
        "they are, with their rounding, since the adapter has learned to live with it."
    )
    return put_adapter(base.dequantize(dtype=dtype).to(dtype), weights.folder)


def _dtype_of_files(asked: Export, base: str, settings: RunSettings) -> torch.dtype:
    if asked.dtype != "auto":
        return getattr(torch, asked.dtype)
    config = loading.read_model_config(
        base,
        revision=settings.model.model_revision,
        trust_remote_code=asked.trust_remote_code,
        needs_weights=False,
    )
    return config.dtype or torch.float32


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def converter_of(given: Path | None) -> Path:
    """Find llama.cpp's converter: as given, in $LLAMA_CPP, on the PATH, or in ./llama.cpp.

    Raises:
        ConfigError: it is not there.
    """
    places = [Path("llama.cpp") / _CONVERTER, Path.home() / "llama.cpp" / _CONVERTER]
    on_path = shutil.which(_CONVERTER)
    if on_path is not None:
        places.insert(0, Path(on_path))
    if _CONVERTER_FOLDER in os.environ:
        places.insert(0, Path(os.environ[_CONVERTER_FOLDER]) / _CONVERTER)
    if given is not None:
        places = [given / _CONVERTER if given.is_dir() else given]
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(str(place) for place in places)
    raise ConfigError(
        f"GGUF needs llama.cpp's {_CONVERTER}, which is not there ({looked}). Get it: "
        f"{_HOW_TO_GET_IT}."
    )


def _convert(converter: Path, model: Path, file: Path, outtype: str) -> None:
    """Run the converter.

    Raises:
        ModelError: it fails, or writes nothing.
    """
    command = [sys.executable, str(converter), str(model), "--outfile", str(file)]
    done = subprocess.run(
        [*command, "--outtype", outtype], capture_output=True, text=True, errors="replace"
    )
    if done.returncode or not file.is_file():
        lines = (done.stderr or done.stdout).strip().splitlines()[-_LINES_OF_ERROR:]
        raise ModelError(
            f"{converter} failed (exit code {done.returncode}): "
            + "\n  ".join(["", *lines])
            + "\nThe merged weights alone: --format safetensors."
        )


def _say_what_is_there(asked: Export, weights: Weights, name: str) -> None:
    """Print the files, and the commands that serve them."""
    folder = asked.folder
    say(f"exported to {folder}:")
    for file in sorted(folder.iterdir()):
        say(f"  {file.name}  {file.stat().st_size:,} bytes")
    say("serve it:")
    place = shlex.quote(str(folder))
    if asked.format == SAFETENSORS:
        say(f"  vLLM:    vllm serve {place} --served-model-name {name}")
    modelfile_there = shlex.quote(str(folder / "Modelfile"))
    say(f"  Ollama:  ollama create {name} -f {modelfile_there} && ollama run {name}")
    if weights.base is None:
        return
    config = PeftConfig.from_pretrained(str(weights.folder))
    if why_not_adapter(config) is None:
        say("or without a merged copy, the adapter beside its base:")
        say(
            f"  vLLM:    vllm serve {shlex.quote(weights.base)} --enable-lora --max-lora-rank "
            f"{served_rank(config)} --lora-modules {name}={shlex.quote(str(weights.folder))}"
        )
