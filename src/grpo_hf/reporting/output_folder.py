"""A folder belongs to one run."""

from pathlib import Path
from typing import Any

from ..errors import OutputExistsError
from .metrics_file import METRICS_FILE

_RUN_TRACES = (METRICS_FILE, "adapter_config.json", "*.safetensors", "*.bin", "checkpoint-*")


def claim_output_folder(
    folder: Path, accelerator: Any = None, *, resume: str | bool | None = None
) -> None:
    """Check that a run may write into the folder, on every process before the first of them writes.

    A run that resumes from a checkpoint in this very folder owns it; `resume` is True, or that checkpoint.

    Raises:
        OutputExistsError: the folder holds another run, or cannot be written to.
    """
    trace = next((found for pattern in _RUN_TRACES for found in sorted(folder.glob(pattern))), None)
    if accelerator is not None:
        accelerator.wait_for_everyone()
    owned = resume is True or (
        bool(resume) and Path(str(resume)).resolve().parent == folder.resolve()
    )
    if trace is not None and not owned:
        resumable = any(folder.glob("checkpoint-*"))
        way = (
            "Continue it with --resume_from_checkpoint true"
            if resumable
            else "It has no checkpoint: remove it"
        )
        raise OutputExistsError(
            f"{folder} holds another run ({trace.name}), which is not overwritten. {way}, or give this run another "
            "--output_dir."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise OutputExistsError(
            f"{folder} cannot be written to ({error.strerror}). Give another --output_dir."
        ) from error
