"""Sampling without a trainer: the settings and the ends that TRL's own trainer has."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from grpo_hf import GRPOTrainer
from grpo_hf.rollout.sampling import GREEDY, continuing, end_token_ids, sampling_of


@pytest.mark.parametrize("declared", [None, 5, [7, 5], [2]])
def test_settings_and_ends_are_those_of_trl(
    make_trainer: Callable[..., GRPOTrainer], erratic_model: Any, declared: Any
) -> None:
    erratic_model.generation_config.eos_token_id = declared
    given = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.01, "repetition_penalty": 1.1}
    trainer = make_trainer(
        model=erratic_model, **given, generation_kwargs={"typical_p": 0.8, "top_k": 6}
    )
    sampling = sampling_of(trainer.args)
    assert sampling == given | {"typical_p": 0.8, "top_k": 6}
    assert sampling == {name: getattr(trainer.generation_config, name) for name in sampling}
    assert end_token_ids(erratic_model, trainer.processing_class) == sorted(trainer.eos_token_ids)


def test_the_tokenizer_s_end_ends_a_completion_that_the_model_does_not_know(
    erratic_model: Any, tiny_checkpoint: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    prompts = tokenizer(["1 + 1 = ", "Tom has 3 boxes."]).input_ids
    erratic_model.generation_config.eos_token_id = None
    erratic_model.generation_config.repetition_penalty = (
        1.5  # a model's own, which a run without it does not take over
    )
    with torch.no_grad():
        alone = [
            erratic_model(torch.tensor([ids])).logits[0, -1].argmax().item() for ids in prompts
        ]
    with continuing(erratic_model, tokenizer, GREEDY) as sample:
        whole = sample(prompts, 12)
    assert [ids[0] for ids in whole] == alone
    assert [len(ids) for ids in whole] == [12, 12]
    ends = copy.deepcopy(tokenizer)
    ends.eos_token = tokenizer.convert_ids_to_tokens(whole[0][4])
    with continuing(erratic_model.train(), ends, GREEDY) as sample:
        cut = sample(prompts, 12)
    assert cut[0] == whole[0][: whole[0].index(ends.eos_token_id) + 1]
    assert erratic_model.training
