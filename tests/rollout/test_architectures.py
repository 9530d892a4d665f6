"""Models of every kind of layer: `generate`'s greedy tokens, by groups or announced to be not."""

from typing import Any

import pytest
import torch
from support.architectures import SETTINGS, small_model
from transformers import GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from grpo_hf.rollout import generate
from grpo_hf.rollout.generate import GroupedSampling

FAST, COPIES, _ = generate._WAYS
# By model type: the way that is right for it; None is that of transformers.
EXPECTED: dict[str, Any] = {
    # Linear attention, state spaces or convolutions beside attention, or in one layer with it.
    "lfm2": FAST,
    "qwen3_5_text": FAST,
    "qwen3_next": FAST,
    "granitemoehybrid": FAST,
    "nemotron_h": FAST,
    "jamba": FAST,
    "bamba": FAST,
    "falcon_h1": FAST,
    "olmo_hybrid": FAST,
    # Windows, layers that read the states of others, attention that picks tokens.
    "gemma3_text": FAST,
    "gemma4_text": FAST,
    "deepseek_v32": FAST,
    # What attention sees is not what the cache holds.
    "deepseek_v3": COPIES,
    "minicpm3": COPIES,
    "jetmoe": COPIES,
    "diffllama": COPIES,
    # Caches of their own, or none.
    "recurrent_gemma": None,
    "mamba": None,
}
# Three rows of a prompt and three of a shorter one.
IDS = torch.tensor([[49, 76, 8, 35, 77, 91, 60]] * 3 + [[0, 0, 0, 0, 29, 83, 44]] * 3)
# Rows end at different times: six tokens of 97 end one.
CONFIG = GenerationConfig(
    max_new_tokens=16,
    do_sample=False,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=[2, 50, 51, 52, 53, 54],
)


def check_greedy_tokens(
    model: Any, ids: torch.Tensor, log: pytest.LogCaptureFixture
) -> generate._Way | None:
    """Compare with `generate`; return the way, `None` for transformers' own, which is logged."""
    call = {"input_ids": ids, "attention_mask": (ids > 0).long(), "generation_config": CONFIG}
    grouped = GroupedSampling()
    with torch.no_grad():
        expected = model.generate(**call)
        with grouped.serving(model):
            found = model.generate(**call)
    assert torch.equal(found, expected)
    way = next(iter(grouped._ways.values()), None)
    assert ("Grouped rollouts are off" in log.text) == (way is None)
    return way


@pytest.mark.parametrize("model_type", EXPECTED)
def test_greedy_tokens_are_those_of_generate(
    model_type: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = small_model(model_type)
    assert check_greedy_tokens(model, IDS, caplog) == EXPECTED[model_type]
    # Without padding there is no mask.
    caplog.clear()
    check_greedy_tokens(model, IDS[:3], caplog)


@pytest.mark.slow
def test_no_architecture_of_transformers_is_sampled_to_other_texts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tried = []
    for model_type in sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *SETTINGS}):
        # Some have other names for their sizes, or `generate` does not run them.
        try:
            model = small_model(model_type)
            model.generate(input_ids=IDS, attention_mask=(IDS > 0).long(), generation_config=CONFIG)
        except Exception:
            continue
        caplog.clear()
        try:
            way = check_greedy_tokens(model, IDS, caplog)
        except Exception as error:
            raise AssertionError(model_type) from error
        tried.append((model_type, way))
    assert len(tried) > 120
    assert sum(way is not None for _, way in tried) > 100
