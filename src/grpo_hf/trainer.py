"""The trainer: TRL's `GRPOTrainer` with reward names, a guarded reference and progress that a person can read.

Every override is a few lines that hand over to one stage of the library; its docstring names what of TRL it relies on.
"""

from inspect import signature
from pathlib import Path
from typing import Any

from peft import PeftModel
from trl import GRPOTrainer as TRLGRPOTrainer

from . import base, hub, roles
from .config import GRPOConfig
from .progress import claim_output_folder, replace_progress
from .scoring import check_columns, checked_rewards


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
        roles.guard_adapters(given["model"], given.get("peft_config"))
        given["args"] = given.get("args") or GRPOConfig(output_dir=f"{base.model_name(given['model'])}-GRPO")
        given["reward_funcs"] = checked_rewards(given.get("reward_funcs"))
        if given.get("rollout_func") is None and given.get("environment_factory") is None:  # these two add columns
            check_columns(given["reward_funcs"], given.get("train_dataset"))
        super().__init__(**{name: value for name, value in given.items() if name != "self"})
        self.continues_adapter = isinstance(given["model"], PeftModel)
        roles.prepare(self.model, getattr(self.args, "reference", "initial"))
        self.dataset_source = "unnamed data"  # these two are for the model card; run.py knows them
        self.results: dict[str, Any] = {}
        self._owns_output_folder = False
        replace_progress(self)

    def train(self, resume_from_checkpoint: str | bool | None = None, **keywords: Any) -> Any:
        """Train, with the output folder claimed first, the reference checked before and the base after.

        transformers 5.23: `Trainer.train(resume_from_checkpoint)` prepares, loops and returns a `TrainOutput`.
        """
        fresh = not resume_from_checkpoint
        if not self._owns_output_folder:
            claim_output_folder(Path(self.args.output_dir), self.accelerator, resume=resume_from_checkpoint)
        self._owns_output_folder = True
        with roles.guarded(self, fresh=fresh and self.state.global_step == 0):
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **keywords)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: Any = None
    ) -> None:
        """Write the card as README.md. TRL 1.16 calls this at every checkpoint, transformers at every push."""
        if self.is_world_process_zero():
            hub.write_model_card(self, model_name=model_name, dataset_name=dataset_name, tags=tags)
