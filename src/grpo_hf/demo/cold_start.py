"""A short supervised stage that teaches the embedded model the answer format, so that GRPO has something to improve.

It stops after a fixed number of steps, well before the model is good, and its checkpoint is kept for the next run.
"""

import hashlib
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from .tiny_model import tiny_model, tiny_tokenizer
from .word_problems import word_problems

BATCH = 64
LEARNING_RATE = 3e-3
_REVISION = 1  # raise it when the model, the problems or the settings above change, so that old caches are not used


def cold_start(
    cache: Path,
    *,
    steps: int,
    seed: int = 0,
    use_cpu: bool = False,
    worked: list[dict[str, Any]] | None = None,
) -> Path:
    """Train the embedded model for `steps` supervised steps, or find the checkpoint of an earlier run.

    Args:
        cache: folder that keeps the checkpoint, one subfolder per setting.
        steps: optimizer steps of 64 worked problems each.
        seed: of weights and problems.
        use_cpu: as in the run that follows; accelerate keeps one device for the process, the last that was asked for.
        worked: rows with `question` and `answer` to learn instead of word problems, repeated as often as it takes.

    Returns:
        The folder of an ordinary checkpoint with its tokenizer.
    """
    state = PartialState()
    settings = (
        _REVISION,
        steps,
        seed,
        state.num_processes,
        *([worked] if worked is not None else []),
    )
    digest = hashlib.sha256(repr(settings).encode()).hexdigest()[:8]
    folder = cache / f"cold_start-{digest}"
    cached = (folder / "config.json").is_file()
    state.wait_for_everyone()
    if cached:
        state.print(f"cold start: using the checkpoint in {folder}", flush=True)
        return folder
    state.print(f"cold start: {steps} supervised steps on worked problems", flush=True)
    tokenizer = tiny_tokenizer()
    trainer = SFTTrainer(
        model=tiny_model(tokenizer, seed=seed),
        args=SFTConfig(
            output_dir=str(folder.with_suffix(".partial")),
            max_steps=steps,
            per_device_train_batch_size=BATCH // state.num_processes,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=20,
            adam_beta2=0.98,
            weight_decay=0.01,
            use_cpu=use_cpu,
            bf16=False,
            gradient_checkpointing=False,
            logging_steps=25,
            save_strategy="no",
            report_to="none",
            seed=seed,
            disable_tqdm=True,
        ),
        train_dataset=_conversations(
            worked or islice(word_problems("cold_start", seed=seed), steps * BATCH)
        ),
        processing_class=tokenizer,
        callbacks=[_LossLine()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    if state.is_main_process:
        partial = folder.with_suffix(".partial")
        trainer.model.float().save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.rename(folder)  # an interrupted stage leaves no folder that looks complete
    state.wait_for_everyone()
    return folder


def _conversations(rows: Iterable[dict[str, Any]]) -> Dataset:
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": row["question"]}],
                "completion": [{"role": "assistant", "content": row["answer"]}],
            }
            for row in rows
        ]
    )


class _LossLine(TrainerCallback):
    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        if state.is_world_process_zero and logs and "loss" in logs:
            step = f"{state.global_step:>{len(str(state.max_steps))}}"
            print(
                f"cold start {step}/{state.max_steps}  loss {float(logs['loss']):.3f}", flush=True
            )
