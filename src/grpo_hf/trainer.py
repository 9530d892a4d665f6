"""The trainer: TRL's `GRPOTrainer` with reward names, a guarded reference and progress that a person can read.

Every override is a few lines that hand over to one stage of the library; its docstring names what of TRL it relies on.
"""

from inspect import signature
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import GRPOTrainer as TRLGRPOTrainer

from . import base, hub, roles
from .config import GRPOConfig
from .progress import MetricsFile, ProgressLine, claim_output_folder
from .scoring import checked_rewards


class GRPOTrainer(TRLGRPOTrainer):
    """TRL's trainer, and exactly its constructor, plus reward names.

    An entry of `reward_funcs` may also be anything that `load_reward` takes: a registered or installed name
    (`"gsm8k"`), `"./mine.py:concise"`, `"package.module:function"`, each with options, as in `"overlong(cache=64)"`.
    A string of the form `org/name`, or a model folder, stays what it is in TRL: a reward model.

    With a `peft_config`, or a `PeftModel`, the frozen base with the adapter disabled is the reference: no second model
    is loaded, the KL at step 0 is checked to be 0, and the base is checked to be unchanged after training.

    Raises:
        RewardError: a reward cannot be found or does not fit.
        ModelError: an adapter that changes the base, or that does not train.
        OutputExistsError: `train()` without `resume_from_checkpoint` into a folder that holds another run.
        ReferenceDriftError: the reference is not where it has to be.
    """

    __signature__ = signature(TRLGRPOTrainer)

    def __init__(self, *positional: Any, **named: Any) -> None:
        given = signature(TRLGRPOTrainer.__init__).bind(self, *positional, **named).arguments
        roles.guard_adapter_config(given.get("peft_config"))
        roles.guard_trainable(given["model"])
        given["args"] = given.get("args") or GRPOConfig(output_dir=f"{base.model_name(given['model'])}-GRPO")
        given["reward_funcs"] = checked_rewards(given.get("reward_funcs"))
        super().__init__(**{name: value for name, value in given.items() if name != "self"})
        self.continues_adapter = isinstance(given["model"], PeftModel)
        roles.prepare(self.model, getattr(self.args, "reference", "initial"))
        self.dataset_source = "unnamed data"  # these two are for the model card; run.py knows them
        self.results: dict[str, Any] = {}
        self._owns_output_folder = False
        for callback in (ProgressCallback, PrinterCallback):
            self.remove_callback(callback)
        self.add_callback(MetricsFile())
        self.add_callback(ProgressLine(self.reward_func_names))

    def train(self, resume_from_checkpoint: str | bool | None = None, **keywords: Any) -> Any:
        """Train, with the output folder claimed first, the reference checked before and the base after.

        transformers 5.23: `Trainer.train(resume_from_checkpoint)` prepares, loops and returns a `TrainOutput`.
        """
        fresh = not resume_from_checkpoint
        if fresh and not self._owns_output_folder:
            claim_output_folder(Path(self.args.output_dir), self.accelerator)
        self._owns_output_folder = True
        with roles.guarded(self, fresh=fresh and self.state.global_step == 0):
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **keywords)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: Any = None
    ) -> None:
        """Write the card as README.md. TRL 1.16 calls this at every checkpoint, transformers at every push."""
        if self.is_world_process_zero():
            hub.write_model_card(self, model_name=model_name, dataset_name=dataset_name, tags=tags)
