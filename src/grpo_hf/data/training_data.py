"""What can be known of training data before a model loads: a run can draw its batches from it."""

import os
from typing import Any

from datasets import Dataset, IterableDataset

from ..config import option
from ..errors import ConfigError, DataError


def check_training_data(dataset: Any, args: Any, *, source: str = "the training data") -> None:
    """Check that a dataset fills a generation batch, and that a stream is asked for no more.

    Args:
        dataset: for training, or None where there is none.
        args: the settings of the run.
        source: the name of the data.

    Raises:
        ConfigError: `dynamic_sampling` on a stream.
        DataError: fewer prompts than a generation batch holds, with which TRL 1.16 would end
            after 0 steps as if it had trained.
    """
    if isinstance(dataset, IterableDataset):
        _check_stream(args)
    elif isinstance(dataset, Dataset):
        check_prompt_count(len(dataset), args, source=source)


def _check_stream(args: Any) -> None:
    if option(args, "dynamic_sampling"):
        raise ConfigError(
            "--dynamic_sampling draws fresh prompts, and a stream (IterableDataset) can only be "
            "read in order. Load the data without streaming, or leave dynamic_sampling off."
        )


def check_prompt_count(count: int, args: Any, *, source: str) -> None:
    """Check that there are as many prompts as a generation batch holds, on all processes.

    TRL 1.16 leaves out what does not fill a generation batch.

    Raises:
        DataError: names the number that there is, the number that is needed, and the ways out.
    """
    group = args.num_generations
    needed = args.generation_batch_size // group
    if count >= needed:
        return
    # Set by the launcher; asking accelerate would start the process group.
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    raise DataError(
        f"{source} has {count} prompt{'' if count == 1 else 's'}, and a generation batch needs "
        f"{needed} different ones: {args.generation_batch_size} completions "
        f"({processes} process{'' if processes == 1 else 'es'} x per_device_train_batch_size "
        f"{args.per_device_train_batch_size} x steps_per_generation {args.steps_per_generation}) / "
        f"num_generations {group}. The run would end after 0 steps. {_advice(count, args, needed)}"
    )


def _advice(count: int, args: Any, needed: int) -> str:
    # A file needs more, where some of its rows are held out.
    more = f"Give at least {needed} rows to train on"
    if not count:
        return f"{more}."
    return (
        f"{more}, or lower per_device_train_batch_size or steps_per_generation (by default "
        f"gradient_accumulation_steps) until a generation batch has at most "
        f"{count * args.num_generations} completions."
    )
