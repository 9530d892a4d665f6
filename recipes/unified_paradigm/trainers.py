"""A trainer for each method: ours where it samples during training, else TRL's."""

from typing import Any

from grpo_hf.errors import DataError

from .offline_data import demonstrations, samples_of_base
from .start import Start

# Settings that the offline trainers (SFT, DPO) take over from the recipe, so that they train in the
# same way as the online methods.
SHARED_SETTINGS = (
    "output_dir",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "per_device_train_batch_size",
    "gradient_checkpointing",
    "bf16",
    "use_cpu",
    "seed",
    "report_to",
    "save_strategy",
)


def online_trainer(start: Start, name: str) -> tuple[Any, int | None]:
    """Return a trainer that samples during training; None says its token cost is not known yet."""
    from trl import get_peft_config

    from grpo_hf import GRPOTrainer
    from grpo_hf.models.loading import load_base
    from grpo_hf.reporting.progress import ProgressLine

    recipe = start.recipe(name)
    trainer = GRPOTrainer(
        load_base(recipe.model),
        [start.reward],
        recipe.training,
        train_dataset=start.prompts.train,
        processing_class=start.prompts.tokenizer,
        peft_config=get_peft_config(recipe.model),
    )
    # One line per step of every run would hide the few lines that this program prints.
    trainer.remove_callback(ProgressLine)
    return trainer, None


def offline_trainer(start: Start, name: str) -> tuple[Any, int]:
    """Return a trainer on a fixed set of completions, and the number of tokens that they cost.

    Raises:
        DataError: there is nothing to learn from.
    """
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer, get_peft_config

    from grpo_hf.models.loading import load_base

    rows, tokens = demonstrations(start) if name == "sft" else samples_of_base(start, name)
    if not rows:
        raise DataError(
            f"{name}: no sample of the base to learn from. "
            "Give more --cold_start_steps or --budget."
        )
    recipe = start.recipe(name)
    options = recipe.training.chat_template_kwargs
    if options:
        # SFT and DPO have no such setting; they read the options from each row.
        rows = [{**row, "chat_template_kwargs": options} for row in rows]
    trainer_class = DPOTrainer if name == "dpo" else SFTTrainer
    config_class = DPOConfig if name == "dpo" else SFTConfig
    trainer = trainer_class(
        load_base(recipe.model),
        args=config_class(
            **{setting: getattr(recipe.training, setting) for setting in SHARED_SETTINGS},
            # SFT's rows already fill the budget, repeated if necessary: one epoch spends it.
            num_train_epochs=1 if name == "sft" else start.settings.epochs,
            # The base's samples of one prompt are neighbours in `rows`, so they need shuffling.
            train_sampling_strategy="sequential" if name == "sft" else "random",
            logging_steps=1,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=start.prompts.tokenizer,
        peft_config=get_peft_config(recipe.model),
    )
    # Without a progress bar, transformers prints every log as a dictionary.
    trainer.remove_callback(PrinterCallback)
    return trainer, tokens
