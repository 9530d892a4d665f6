"""What grouped sampling leaves to transformers, because of the settings of a call or an adapter.

These are known by what they are. What a model makes of groups is measured (self_check.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from peft import PeftModel
from transformers import GenerationConfig
from transformers.generation import GenerationMode

from ..models.adapters import causal_model
from ..models.positions import stretching_positions

# What a call may have: TRL gives the first three.
_SERVED = {"input_ids", "attention_mask", "generation_config"}
# Settings that need more than one text per row, another cache, or another loop; with the values
# at which they do nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "use_cache": (None, True),
    "cache_implementation": (None, "dynamic"),
    "guidance_scale": (None, 1),
    # These compare with the prompts of all rows, as they were when the call began.
    "encoder_repetition_penalty": (None, 1),
    "encoder_no_repeat_ngram_size": (None, 0),
    "num_return_sequences": (None, 1),
    "return_dict_in_generate": (None, False),
    "token_healing": (None, False),
    "prefill_chunk_size": (None,),
}


def why_not_this_method(model: Any) -> str | None:
    """Return why a model's `generate` may do more than transformers' own, or None if it is that."""
    for each in (model, causal_model(model)):
        if "generate" in vars(each):
            return "`generate` was replaced on the model, by what may keep a state for each row"
    return None


def why_not_these_inputs(
    model: Any, positional: Sequence[Any], named: Mapping[str, Any]
) -> str | None:
    """Return why a call of `generate` is not text in, text out, row by row, or None if it is."""
    if positional:
        return "`generate` gets inputs by position"
    if others := named.keys() - _SERVED:
        return f"`generate` is called with {', '.join(sorted(others))}"
    if missing := _SERVED - named.keys():
        return f"`generate` is called without {', '.join(sorted(missing))}"
    if not isinstance(model, PeftModel):
        return None
    for name in model.active_adapters:
        adapter = model.peft_config[name]
        if adapter.is_prompt_learning:
            # PEFT puts soft prompts in while it prepares the inputs of each step.
            return "the adapter is a soft prompt"
        if getattr(adapter, "alora_invocation_tokens", None):
            return "PEFT looks for the adapter's `alora_invocation_tokens` in each row"
    return None


def why_not_these_settings(model: Any, config: GenerationConfig, width: int) -> str | None:
    """Return why settings need transformers' own loop, or None if they do not.

    Args:
        config: with the model's own settings filled in.
        width: tokens of the longest prompt.
    """
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.SAMPLE, GenerationMode.GREEDY_SEARCH):
        return f"they ask for {mode.value.replace('_', ' ')}"
    for name, neutral in _NEUTRAL.items():
        value = getattr(config, name, None)
        if value not in neutral:
            return f"`{name}` is {value}"
    limit = config.max_length or 0
    if config.max_new_tokens is not None:
        limit = width + config.max_new_tokens
    for kind, longest in stretching_positions(causal_model(model).config.get_text_config()):
        if limit > longest:
            return (
                f"texts may have more than {longest} tokens, where rotary embeddings of type "
                f"{kind!r} change"
            )
    return None
