"""Measures whether vLLM computes what the policy computes, before the first completion counts.

vLLM reads the base from files, and the policy may be another model by now: trained in this process,
with tokens added, quantised. A server may hold any base. And an adapter may mean something else to
vLLM than to PEFT. So some samples of vLLM's are scored by the policy, while the adapter's weights
that are 0 so far are small numbers: a fresh adapter would show nothing.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import EngineError
from ..models.measuring import without_dropout, zeros_filled

logger = logging.getLogger(__name__)

# Nats per token. Beyond the first it is said; beyond the second it is not the same model. Rounding
# is 1e-6 in float32, and 0.02 in bfloat16.
_SAID = {True: 0.1, False: 0.01}
_ANOTHER_MODEL = 0.5

_TEXT = "The quick brown fox jumps over the lazy dog, and 12 + 30 = 42. Let us think: if a "
_TOKENS = 12


@torch.no_grad()
def check_samples(generation: Any, load: Callable[[], None]) -> None:
    """Compare log-probabilities of vLLM's samples with the policy's.

    All processes have to call this.

    Args:
        generation: TRL's sampler.
        load: loads the adapter as it is now.

    Raises:
        EngineError: they are those of another model.
    """
    accelerator = generation.accelerator
    model = accelerator.unwrap_model(generation.model)
    half = accelerator.mixed_precision != "no" or model.dtype != torch.float32
    with zeros_filled(model), without_dropout(model):
        load()
        distance = 0.0
        # Every process with an engine of its own; for servers the first process alone.
        if generation.mode == "colocate" or accelerator.is_main_process:
            with accelerator.autocast():
                distance = _distance(generation, model)
    if distance > _ANOTHER_MODEL:
        raise EngineError(
            f"vLLM's log-probabilities are {distance:.2g} nats per token from the policy's: it "
            "has another base, or reads the adapter in another way. Start the servers with the "
            "base that trains; a model that was changed in this process has to be saved and "
            "loaded from there. Or set --vllm_sync merged, which sends all weights."
        )
    if distance > _SAID[half]:
        logger.warning(
            f"vLLM's log-probabilities are {distance:.2g} nats per token from the policy's, more "
            "than rounding. TRL's importance correction makes up for it."
        )


def _distance(generation: Any, model: Any) -> float:
    """Return the mean distance of log-probabilities, over samples of a few prompts."""
    tokenizer = generation.processing_class
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    text = tokenizer(_TEXT, add_special_tokens=False)["input_ids"]
    sample = _sample_here if generation.mode == "colocate" else _sample_there
    distances = []
    for length in (len(text), len(text) // 2, max(1, len(text) // 5)):
        prompt = text[:length]
        completion, log_probs = sample(generation, prompt)
        own = _log_probs(model, prompt, completion)
        distances.append((own - torch.tensor(log_probs)).abs())
    return torch.cat(distances).mean().item()


def _log_probs(model: Any, prompt: list[int], completion: list[int]) -> Tensor:
    """Return the policy's log-probability of each token of a completion."""
    row = torch.tensor([prompt + completion], device=model.device)
    logits = model(input_ids=row).logits[0, len(prompt) - 1 : -1].float()
    chosen = torch.tensor(completion, device=logits.device)
    return logits.log_softmax(-1).gather(-1, chosen[:, None])[:, 0].cpu()


def _sample_here(generation: Any, prompt: list[int]) -> tuple[list[int], list[float]]:
    from vllm import SamplingParams

    settings = SamplingParams(max_tokens=_TOKENS, logprobs=0, temperature=1.0, seed=0)
    if generation.enable_sleep_mode:
        generation.llm.wake_up(tags=["kv_cache"])
    (output,) = generation.llm.generate(
        [{"prompt_token_ids": prompt}], sampling_params=settings, use_tqdm=False
    )
    completion = output.outputs[0]
    log_probs = []
    for token, at in zip(completion.token_ids, completion.logprobs, strict=True):
        log_probs.append(at[token].logprob)
    return list(completion.token_ids), log_probs


def _sample_there(generation: Any, prompt: list[int]) -> tuple[list[int], list[float]]:
    answer = generation.vllm_client.generate(
        [prompt], n=1, max_tokens=_TOKENS, temperature=1.0, logprobs=0, seed=0
    )
    (completion,), (log_probs,) = answer["completion_ids"], answer["logprobs"]
    return completion, [value for (value,) in log_probs]
