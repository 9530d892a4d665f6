"""TRL's trainer, whose runs survive: the overrides of `GRPOTrainer` that change no number.

The stages of an update are in trainer.py. As there, an override unpacks what it is called with,
calls a stage with plain values, and its docstring names what of the libraries it relies on.
"""

from pathlib import Path
from typing import Any

from trl import GRPOTrainer as TRLGRPOTrainer

from .reporting import output_folder


class DurableTrainer(TRLGRPOTrainer):
    """TRL's trainer in a folder of its own."""

    # A second `train()` may go on in the folder that the first one claimed.
    _owns_output_folder = False

    def train(self, resume_from_checkpoint: str | bool | None = None, **keywords: Any) -> Any:
        """Train in a folder that belongs to this run.

        transformers 5.23: `train` prepares, loops and returns a `TrainOutput`.
        """
        resume, folder = resume_from_checkpoint, Path(self.args.output_dir)
        if not self._owns_output_folder:
            output_folder.claim_output_folder(folder, self.accelerator, resume=resume)
        self._owns_output_folder = True
        return self.train_here(resume, **keywords)

    def train_here(self, resume: str | bool | None, **keywords: Any) -> Any:
        """Train in the folder that was claimed."""
        return super().train(resume_from_checkpoint=resume, **keywords)
