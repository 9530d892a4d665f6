"""A short supervised stage that teaches the embedded model the answer format.

It stops after a fixed number of steps, well before the model is good, so that GRPO has something to
improve. Its checkpoint is kept for the next run.
"""

import hashlib
import os
import shutil
import time
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

# Worked problems per optimizer step, all processes together.
BATCH = 64
LEARNING_RATE = 3e-3
# Seconds between two lines about the loss.
_PAUSE = 5.0
# Raise it when the model, the problems or the settings of training change, so that no run uses a
# checkpoint of the old ones.
_REVISION = 1


def cold_start(
    cache: Path,
    *,
    steps: int,
    seed: int = 0,
    use_cpu: bool = False,
    bf16: bool = False,
    fp16: bool = False,
    worked: list[dict[str, Any]] | None = None,
) -> Path:
    """Train the embedded model for `steps` supervised steps, or find an earlier run's checkpoint.

    Args:
        cache: folder that keeps the checkpoints, one subfolder per setting.
        steps: optimizer steps of 64 worked problems each.
        seed: of the weights and the problems.
        use_cpu: the same as in the run that follows. accelerate keeps one device for the whole
            process: the one that was asked for last.
        bf16, fp16: the same as in the run that follows. accelerate refuses another mixed precision
            than the first one of a process.
        worked: rows with `question` and `answer` to learn instead of word problems; they are
            repeated until the steps are done.

    Returns:
        The folder of an ordinary checkpoint with its tokenizer.
    """
    state = PartialState()
    folder = _checkpoint_folder(cache, steps, seed, bf16, fp16, worked)
    cached = (folder / "config.json").is_file()
    # Every process has looked before the first of them can write.
    state.wait_for_everyone()
    if cached:
        state.print(f"cold start: using the checkpoint in {folder}", flush=True)
        return folder
    state.print(f"cold start: {steps} supervised steps on worked problems", flush=True)
    # Training writes here; an interrupted stage leaves no folder that looks complete, and runs that
    # begin at the same time do not write into each other's.
    partial = folder.with_suffix(f".{os.getpid()}.partial")
    try:
        rows = worked or islice(word_problems("cold_start", seed=seed), steps * BATCH)
        args = _training_arguments(partial, steps, seed, use_cpu, bf16, fp16)
        trainer = _supervised_trainer(args, rows)
        # Reading them takes as long as the first steps.
        problems = f"{len(trainer.train_dataset):,} problems"
        state.print(f"cold start: {problems}, as tokens; now the steps", flush=True)
        trainer.train()
        if state.is_main_process:
            # The checkpoint is in float32, whatever the trainer has made of the model.
            trainer.model.float().save_pretrained(partial)
            trainer.processing_class.save_pretrained(partial)
            _put(partial, folder)
    finally:
        # It is there only if the stage was interrupted, by Ctrl-C for one.
        if state.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
    # No process reads the folder before it is there.
    state.wait_for_everyone()
    return folder


def like_the_run(training: Any) -> dict[str, Any]:
    """Return the arguments of a cold start that are those of the run that follows.

    Args:
        training: the run's `GRPOConfig`.
    """
    return {
        "seed": training.seed,
        "use_cpu": training.use_cpu,
        "bf16": bool(training.bf16),
        "fp16": training.fp16,
    }


def _put(partial: Path, folder: Path) -> None:
    """Give a complete checkpoint its name, or leave that to a run that was faster.

    Raises:
        OSError: it cannot be renamed.
    """
    try:
        partial.rename(folder)
    except OSError:
        # The same setting has the same weights.
        if not (folder / "config.json").is_file():
            raise


def _checkpoint_folder(
    cache: Path,
    steps: int,
    seed: int,
    bf16: bool,
    fp16: bool,
    worked: list[dict[str, Any]] | None,
) -> Path:
    # The number of processes changes the batches, and so the weights.
    settings: tuple[Any, ...] = (_REVISION, steps, seed, PartialState().num_processes)
    if bf16 or fp16:
        settings = (*settings, "bf16" if bf16 else "fp16")
    if worked is not None:
        settings = (*settings, worked)
    digest = hashlib.sha256(repr(settings).encode()).hexdigest()[:8]
    return cache / f"cold_start-{digest}"


def _supervised_trainer(args: SFTConfig, rows: Iterable[dict[str, Any]]) -> SFTTrainer:
    tokenizer = tiny_tokenizer()
    trainer = SFTTrainer(
        model=tiny_model(tokenizer, seed=args.seed),
        args=args,
        train_dataset=_conversations(rows),
        processing_class=tokenizer,
        callbacks=[_LossLine()],
    )
    # It would print every log as a dictionary, beside our own line.
    trainer.remove_callback(PrinterCallback)
    return trainer


def _training_arguments(
    output_dir: Path, steps: int, seed: int, use_cpu: bool, bf16: bool, fp16: bool
) -> SFTConfig:
    return SFTConfig(
        output_dir=str(output_dir),
        max_steps=steps,
        per_device_train_batch_size=BATCH // PartialState().num_processes,
        learning_rate=LEARNING_RATE,
        # No decay: the same step then has the same rate, however many steps follow.
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=20,
        adam_beta2=0.98,
        weight_decay=0.01,
        use_cpu=use_cpu,
        bf16=bf16,
        fp16=fp16,
        # The model is so small that its activations always fit.
        gradient_checkpointing=False,
        # Of these, a line is printed when some seconds have passed.
        logging_steps=5,
        # The stage saves its result itself, once and complete.
        save_strategy="no",
        report_to="none",
        seed=seed,
        disable_tqdm=True,
    )


def _conversations(rows: Iterable[dict[str, Any]]) -> Dataset:
    """Return the rows in TRL's format for supervised training on prompts and completions."""
    conversations = []
    for row in rows:
        prompt = [{"role": "user", "content": row["question"]}]
        completion = [{"role": "assistant", "content": row["answer"]}]
        conversations.append({"prompt": prompt, "completion": completion})
    return Dataset.from_list(conversations)


class _LossLine(TrainerCallback):
    """Print the loss in a line every few seconds, however fast the machine is."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        # The last log of a run is a summary without a loss.
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        now = time.monotonic()
        if now - self._last < _PAUSE and state.global_step < state.max_steps:
            return
        self._last = now
        width = len(str(state.max_steps))
        step = f"{state.global_step:>{width}}/{state.max_steps}"
        print(f"cold start {step}  loss {float(logs['loss']):.3f}", flush=True)
