"""Sizes from a configuration, against the model itself with its adapter."""

import time
from typing import Any

import pytest
import transformers
from peft import LoraConfig, get_peft_model
from support.architectures import small_model
from support.models import decoder, lora
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from grpo_hf.errors import NotPlannableError
from grpo_hf.planning import model_shape
from grpo_hf.planning.known_shapes import known_models
from grpo_hf.planning.model_shape import shape_of

ADAPTERS: dict[str, LoraConfig | None] = {
    "none": None,
    "all matrices": lora(),
    "PEFT's choice": LoraConfig(r=8, task_type="CAUSAL_LM"),
    "two matrices": lora(target_modules=["q_proj", "v_proj"]),
    "DoRA": lora(use_dora=True),
    "a trained head": lora(modules_to_save=["lm_head"]),
}


def count(model: Any, *, trained: bool) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained)


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("architecture", ["Llama", "Qwen3", "Gemma3Text"])
def test_parameters_are_counted_exactly(architecture: str, name: str) -> None:
    model = decoder(architecture)
    shape = shape_of(model.config, ADAPTERS[name])
    assert shape.parameters == count(model, trained=False)
    adapter = ADAPTERS[name]
    whole = model if adapter is None else get_peft_model(model, adapter)
    assert shape.trained == count(whole, trained=True)


@pytest.mark.parametrize("architecture", ["GPT2", "Phi3", "Lfm2", "Bamba", "Qwen3_5Text"])
def test_other_architectures_have_a_plan(architecture: str) -> None:
    model = decoder(architecture)
    shape = shape_of(model.config)
    assert shape.parameters == count(model, trained=False)
    assert shape.depth == 3


def test_widths_of_a_layer() -> None:
    layer, number = shape_of(decoder("Llama").config, lora()).layers[0]
    assert number == 3
    # D = 32, H·d = 32, K·d = 16, I = 64, r = 4; q, k, v read one input, gate and up another.
    assert layer.distinct == 32 + 32 + 32 + 64
    assert layer.inputs == 3 * 32 + 32 + 2 * 32 + 64
    assert (layer.queries, layer.keys, layer.inner) == (32, 16, 64)
    assert layer.ranks == 7 * 4
    assert layer.gated


def test_layers_that_are_built_differently_are_counted_each() -> None:
    kinds = shape_of(decoder("Lfm2").config).layers
    assert sorted(number for _, number in kinds) == [1, 2]


def test_a_model_without_attention_is_refused_with_the_reason() -> None:
    with pytest.raises(NotPlannableError, match=r"'mamba' has no num_attention_heads.*measured"):
        shape_of(transformers.MambaConfig())


def test_matrices_of_gpt_2_are_read_without_an_adapter_too() -> None:
    config = decoder("GPT2").config
    (layer, _), (adapted, _) = (shape_of(config, adapter).layers[0] for adapter in (None, lora()))
    assert layer.inputs == adapted.inputs > 0
    assert layer.matrices == adapted.matrices > 0


def test_widths_may_differ_from_layer_to_layer() -> None:
    config = transformers.Gemma3nTextConfig(num_hidden_layers=3, intermediate_size=[64, 96, 64])
    assert model_shape._inner_width(config, config.hidden_size) == 96


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ("Mixtral", "activations of experts are estimated"),
        ("Lfm2", "layers of the kind conv are counted as attention"),
        ("GPT2", "a layer of 'gpt2' is counted as one of a Llama"),
        ("Llama", ""),
    ],
)
def test_what_is_counted_roughly_is_said(architecture: str, said: str) -> None:
    notes = shape_of(decoder(architecture).config).notes
    assert said in " ".join(notes)
    assert bool(notes) == bool(said)


def test_a_model_that_is_no_decoder_is_refused() -> None:
    with pytest.raises(NotPlannableError, match="num_hidden_layers"):
        shape_of(transformers.ResNetConfig())


@pytest.mark.parametrize(
    ("name", "billions"),
    [("Qwen2.5-0.5B", 0.494), ("Llama-3.1-8B", 8.030), ("Llama-3.1-70B", 70.6)],
)
def test_known_shapes_have_the_published_sizes(name: str, billions: float) -> None:
    started = time.process_time()
    shape = shape_of(known_models()[name], lora(r=16))
    assert shape.parameters / 1e9 == pytest.approx(billions, rel=2e-3)
    # It runs before every training.
    assert time.process_time() - started < 1.0


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
def test_every_architecture_is_counted_or_refused(model_type: str) -> None:
    try:
        model = small_model(model_type)
    # Types whose small configuration is not known to the tests.
    except Exception as error:
        pytest.skip(type(error).__name__)
    try:
        shape = shape_of(model.config)
    except NotPlannableError:
        return
    assert shape.parameters == count(model, trained=False)
    assert shape.depth >= 1
