"""Every option of `generate`: TRL's greedy tokens by groups, or TRL's way with the reason."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.models import decoder
from support.sampling import PROMPTS, completions
from transformers import GenerationConfig, SynthIDTextWatermarkingConfig, WatermarkingConfig

from grpo_hf import GRPOTrainer
from grpo_hf.rollout import generate, refusals

# Options that change scores, lengths or ends, with values that change them here; rows are sampled
# by groups with them.
GROUPED: dict[str, Any] = {
    "repetition_penalty": 1.6,
    "no_repeat_ngram_size": 2,
    "bad_words_ids": [[7], [8, 9]],
    "sequence_bias": [[[3], 5.0], [[4, 5], -5.0]],
    "suppress_tokens": [3, 4, 5, 60, 61],
    "begin_suppress_tokens": [3, 4, 60],
    "forced_bos_token_id": 11,
    "forced_eos_token_id": 12,
    "exponential_decay_length_penalty": (2, 1.5),
    "min_length": 10,
    "min_new_tokens": 6,
    "renormalize_logits": True,
    "remove_invalid_values": True,
    "watermarking_config": WatermarkingConfig(bias=8.0, seeding_scheme="selfhash"),
    "max_time": 600.0,
    "max_new_tokens": 5,
    "eos_token_id": [2, 20, 30, 40, 50, 60, 70, 80, 90],
    # These change nothing where nothing is drawn.
    "temperature": 0.5,
    "top_k": 3,
    "top_p": 0.5,
    "top_h": 0.5,
    "min_p": 0.2,
    "typical_p": 0.5,
    "epsilon_cutoff": 0.02,
    "eta_cutoff": 0.02,
    # Of other ways to generate, which nothing asks for here.
    "diversity_penalty": 0.5,
    "num_beam_groups": 2,
    "num_return_sequences": 1,
    "length_penalty": 2.0,
    "early_stopping": True,
    "num_assistant_tokens": 3,
    "max_matching_ngram_size": 2,
    "low_memory": True,
    "max_cache_len": 64,
    "output_scores": True,
}
# Options that are left to transformers, whatever it makes of them, and the reason that is logged.
LEFT: dict[str, tuple[Any, str]] = {
    "num_beams": (2, "beam search"),
    "guidance_scale": (1.5, "`guidance_scale` is 1.5"),
    "encoder_repetition_penalty": (1.4, "`encoder_repetition_penalty` is 1.4"),
    "encoder_no_repeat_ngram_size": (2, "`encoder_no_repeat_ngram_size` is 2"),
    "use_cache": (False, "`use_cache` is False"),
    "cache_implementation": ("static", "`cache_implementation` is static"),
    "prefill_chunk_size": (2, "`prefill_chunk_size` is 2"),
    "return_dict_in_generate": (True, "`return_dict_in_generate` is True"),
    "token_healing": (True, "`token_healing` is True"),
    "penalty_alpha": (0.6, "contrastive search"),
    "dola_layers": ("low", "dola generation"),
    "prompt_lookup_num_tokens": (2, "assisted generation"),
    "assistant_early_exit": (1, "assisted generation"),
    "constraints": ([], "constrained beam search"),
    "force_words_ids": ([[5]], "constrained beam search"),
    "watermarking_config": (
        SynthIDTextWatermarkingConfig(keys=[1, 2, 3], ngram_len=2),
        "About this model with these settings",
    ),
}
# What changes neither tokens nor when they end, beside the tokens that a tokenizer declares.
OTHERS = {
    "_from_model_config",
    "assistant_confidence_threshold",
    "assistant_ensemble_weight",
    "assistant_lookbehind",
    "bos_token_id",
    "cache_config",
    "compile_config",
    "continuous_batching_config",
    "decoder_start_token_id",
    "disable_compile",  # TRL's own
    "do_sample",
    "is_assistant",
    "max_length",
    "num_assistant_tokens_schedule",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "pad_token_id",
    "speculation_type",
    "stop_strings",  # test_stop_strings.py
    "target_lookbehind",
    "transformers_version",
    "use_mtp",
}


def test_every_option_is_known() -> None:
    """An option of a later version belongs into one of the tables."""
    assert set(GenerationConfig().to_dict()) - GROUPED.keys() - LEFT.keys() - OTHERS == set()


def outcome(trainer: GRPOTrainer, *, grouped: bool) -> Any:
    try:
        return completions(trainer, PROMPTS, grouped=grouped)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def greedy(sampler: Callable[..., GRPOTrainer], name: str, value: Any) -> GRPOTrainer:
    # A Llama's tokens differ from step to step, and the first prompt's rows end early.
    # Contrastive search wants to know among how many tokens.
    more = {"top_k": 4} if name == "penalty_alpha" else {}
    return sampler(generation_kwargs={"do_sample": False, name: value} | more)


@pytest.mark.parametrize("name", GROUPED)
def test_greedy_tokens_are_trls_with(
    sampler: Callable[..., GRPOTrainer], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = greedy(sampler, name, GROUPED[name])
    expected = completions(trainer, PROMPTS, grouped=False)
    ends = [2, expected[0][2], expected[4][4]]
    if name != "eos_token_id":
        # Rows of the first prompt leave before the others end.
        trainer.generation_config.eos_token_id = trainer.eos_token_ids = ends
        expected = completions(trainer, PROMPTS, grouped=False)
    assert completions(trainer, PROMPTS, grouped=True) == expected
    assert "Grouped rollouts are off" not in caplog.text
    assert set(trainer.grouped._ways.values()) == {generate._WAYS[0]}


@pytest.mark.parametrize("name", LEFT)
def test_left_to_transformers_with_the_reason_is(
    sampler: Callable[..., GRPOTrainer], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    value, reason = LEFT[name]
    trainer = greedy(sampler, name, value)
    expected = outcome(trainer, grouped=False)
    assert outcome(trainer, grouped=True) == expected
    assert reason in caplog.text
    outcome(trainer, grouped=True)
    assert sum("rollouts are off" in each for each in caplog.messages) == 1


@pytest.mark.parametrize(
    "name",
    [
        "temperature",
        "top_k",
        "top_p",
        "top_h",
        "min_p",
        "typical_p",
        "epsilon_cutoff",
        "eta_cutoff",
    ],
)
def test_what_may_be_drawn_is_what_transformers_lets(
    sampler: Callable[..., GRPOTrainer], name: str
) -> None:
    trainer = sampler(generation_kwargs={name: GROUPED[name], "max_new_tokens": 1})
    prompt = torch.tensor([[5, 6, 7]])
    allowed = []

    def scored(model: Any, input_ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
        scores = inputs["logits_processor"](input_ids, model(input_ids=input_ids).logits[:, -1])
        allowed.append(scores.softmax(-1)[0])
        return input_ids

    with torch.no_grad():
        trainer.model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            generation_config=trainer.generation_config,
            custom_generate=scored,
        )
    drawn = completions(trainer, [[5, 6, 7]] * 400, grouped=True)
    counts = torch.bincount(torch.tensor([row[0] for row in drawn]), minlength=97) / 400
    assert set(counts.nonzero()[:, 0].tolist()) <= set(allowed[0].nonzero()[:, 0].tolist())
    assert (counts - allowed[0]).abs().max() < 0.1  # four standard deviations of a half


def test_a_penalty_counts_no_padding_when_rows_have_left(
    sampler: Callable[..., GRPOTrainer],
) -> None:
    """transformers 5.23 holds the padding of every row, in the order of the rows."""
    prompts = [[9, 10]] * 4 + [[5, 6, 7, 8, 11]] * 4
    trainer = sampler(repetition_penalty=1.5, generation_kwargs={"do_sample": False})
    # The padding, 0, would be penalised where it counted.
    trainer.model.get_base_model().lm_head.weight.data[0] *= 3
    free = completions(trainer, prompts, grouped=False)
    trainer.generation_config.eos_token_id = trainer.eos_token_ids = [2, free[0][2], free[4][6]]
    expected = completions(trainer, prompts, grouped=False)
    assert len({len(row) for row in expected}) > 1
    assert completions(trainer, prompts, grouped=True) == expected


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_positions_that_change_with_the_length_are_left_to_transformers(
    sampler: Callable[..., GRPOTrainer], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Phi-3 reads its text anew where it becomes longer than the pretraining's."""
    scaling = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0}
    architecture = "Llama"
    own: dict[str, Any] = {"max_position_embeddings": 8}
    if kind == "longrope":
        architecture = "Phi3"
        scaling |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
        scaling["original_max_position_embeddings"] = 8
        own = {"original_max_position_embeddings": 8}
    model = decoder(architecture, rope_parameters=scaling, **own)
    trainer = sampler(model=model, generation_kwargs={"do_sample": False})
    expected = completions(trainer, PROMPTS, grouped=False)
    assert completions(trainer, PROMPTS, grouped=True) == expected
    assert f"more than 8 tokens, where rotary embeddings of type '{kind}' change" in caplog.text
    # Short texts stay below.
    trainer.generation_config.max_new_tokens = 4
    assert refusals.why_not_these_settings(trainer.model, trainer.generation_config, 4) is None
