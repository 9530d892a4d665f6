"""Keep what other libraries say about themselves out of a run's output."""

import logging
import os
import warnings


def quiet() -> None:
    """Silence progress bars and warnings that a user of this library can do nothing about.

    Programs call it before the heavy imports; importing grpo_hf silences nothing.
    """
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # ours are milliseconds of mapping
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # optional kernels that it did not find
    for library in ("transformers", "torch"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=library)
    warnings.filterwarnings("ignore", message="'pin_memory' argument is set as true but no accelerator")
