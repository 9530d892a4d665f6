"""The output folder: it belongs to one run, and no other run may write into it."""

from pathlib import Path
from typing import Any

from ..errors import OutputExistsError
from .metrics_file import METRICS_FILE

# What a run leaves behind; recipe.yaml and notes of the user are not among it.
_RUN_TRACES = (METRICS_FILE, "adapter_config.json", "*.safetensors", "*.bin", "checkpoint-*")


def claim_output_folder(
    folder: Path, accelerator: Any = None, *, resume: str | bool | None = None
) -> None:
    """Check that a run may write into the folder, and create the folder.

    All processes check before the first of them writes. A run that resumes from a checkpoint in
    this folder owns it.

    Args:
        resume: True, or the checkpoint from which the run resumes.

    Raises:
        OutputExistsError: the folder holds another run, or cannot be written to.
    """
    trace = _first_trace(folder)
    # Without this barrier a slow process could take the files of the first one for another run's.
    if accelerator is not None:
        accelerator.wait_for_everyone()
    if trace is not None and not _resumes_here(folder, resume):
        advice = "It has no checkpoint: remove it"
        if any(folder.glob("checkpoint-*")):
            advice = "Continue it with --resume_from_checkpoint auto"
        raise OutputExistsError(
            f"{folder} holds another run ({trace.name}), which is not overwritten. {advice}, or "
            "give this run another --output_dir."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Only a write tells: permissions say nothing about a read-only disk.
        probe = folder / ".writable"
        probe.touch()
        # Another process may have removed it already.
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise OutputExistsError(
            f"{folder} cannot be written to ({error.strerror}). Give another --output_dir."
        ) from error


def _first_trace(folder: Path) -> Path | None:
    """Return a file or folder that a run left here, or None."""
    for pattern in _RUN_TRACES:
        # Sorted, so that all processes and all repetitions name the same one.
        for trace in sorted(folder.glob(pattern)):
            return trace
    return None


def _resumes_here(folder: Path, resume: str | bool | None) -> bool:
    """Whether a run resumes from a checkpoint of this folder, or may begin in it again."""
    wish = str(resume).lower()
    if wish == "auto":
        # Weights without a checkpoint are what another run was for.
        has_weights = any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))
        return any(folder.glob("checkpoint-*")) or not has_weights
    return wish == "true" or (
        bool(resume) and Path(str(resume)).resolve().parent == folder.resolve()
    )
