"""Stop strings: the run's tokenizer for `generate`, and completions that end where they stand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.sampling import PROMPTS, completions
from transformers import AutoTokenizer

from grpo_hf import GRPOTrainer


def until_a_stop(tokenizer: Any, ids: list[int], strings: list[str]) -> list[int]:
    """Cut as a reader would: at the first token with which the text has a stop string."""
    for length in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:length])
        if any(string in text for string in strings):
            return ids[:length]
    return ids


@pytest.mark.parametrize("served", [True, False])
@pytest.mark.parametrize("pads_with_the_end", [True, False])
def test_completions_end_at_the_first_stop_string(
    module_trainer: Callable[..., GRPOTrainer],
    tiny_checkpoint: Path,
    erratic_model: Any,
    served: bool,
    pads_with_the_end: bool,
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint, padding_side="left")
    if pads_with_the_end:
        tokenizer.pad_token = tokenizer.eos_token
    strings = ["a", "1"]
    options: dict[str, Any] = {"do_sample": False}
    # A setting that is left to transformers.
    others = {} if served else {"prefill_chunk_size": 2}
    make = {"model": erratic_model, "processing_class": tokenizer, "max_completion_length": 24}
    free = completions(module_trainer(**make, generation_kwargs=options), PROMPTS, grouped=False)
    expected = [until_a_stop(tokenizer, ids, strings) for ids in free]
    assert any(len(cut) < len(ids) for cut, ids in zip(expected, free, strict=True))
    stopping = options | others | {"stop_strings": strings}
    trainer = module_trainer(**make, generation_kwargs=stopping)
    assert completions(trainer, PROMPTS, grouped=True) == expected
    assert bool(trainer.grouped._ways) == served
    assert trainer.generation_config.stop_strings == strings


def test_stop_strings_of_the_model_itself_count(
    module_trainer: Callable[..., GRPOTrainer], erratic_model: Any
) -> None:
    trainer = module_trainer(
        model=erratic_model, generation_kwargs={"do_sample": False}, max_completion_length=24
    )
    free = completions(trainer, PROMPTS, grouped=False)
    erratic_model.generation_config.stop_strings = ["a", "1"]
    tokenizer = trainer.processing_class
    expected = [until_a_stop(tokenizer, ids, ["a", "1"]) for ids in free]
    assert completions(trainer, PROMPTS, grouped=True) == expected
    assert erratic_model.generation_config.stop_strings == ["a", "1"]
