"""Pays for meaning the same as a reference text: the cosine of their sentence embeddings (SBERT, arXiv 1908.10084).

An embedding is the mean of an encoder's last hidden states over the tokens of a text. Encoders trained for it are on
the Hub, for example sentence-transformers/all-MiniLM-L6-v2. A cosine says nothing about truth ("it is 41" is close to
"it is 42"): use it beside a reward that checks the answer.
"""

from functools import lru_cache
from typing import Any

from grpo_hf.data.completions import Completion, completion_text
from grpo_hf.errors import RewardSpecError
from grpo_hf.scoring.reward import reward_settings


@reward_settings(in_process=True, batched=True)
def embedding_similarity(
    completions: list[Completion],
    answer: list[Any],
    *,
    model: str | None = None,
    batch_size: int = 32,
    max_length: int = 256,
    **columns: Any,
) -> list[float | None]:
    """max(0, cos(e(completion), e(answer))) with e the mean-pooled encoder `model`; 0.0 for an empty completion.

    The model is loaded once, stays in the trainer's process and runs there on the CPU, so that the accelerator's memory
    is left to training.

    Args:
        completions: texts, or lists of messages.
        answer: reference texts.
        model: needed; an encoder for transformers' `AutoModel`: a name on the Hub, or a folder.
        batch_size: texts per forward pass.
        max_length: tokens of a text that are read; fewer if the model has fewer positions.

    Returns:
        One reward per completion; None where the reference is no text or an empty one.

    Raises:
        RewardSpecError: there is no model, it cannot be loaded, or a number is not positive.

    >>> embedding_similarity(["", "42"], ["Forty-two.", None], model="any/encoder")  # neither needs the model
    [0.0, None]
    """
    if model is None:
        raise RewardSpecError(
            "embedding_similarity needs an encoder: name one as embedding_similarity(model='org/name'), or a folder."
        )
    if batch_size < 1 or max_length < 1:
        raise RewardSpecError(
            f"embedding_similarity: batch_size={batch_size}, max_length={max_length}; expected numbers above 0. Leave "
            "them out for 32 texts at a time, and 256 tokens of each."
        )
    texts = [completion_text(completion) for completion in completions]
    pairs = list(zip(texts, answer, strict=True))
    usable = [pair for pair in pairs if _has_text(pair[0]) and _has_text(pair[1])]
    # The completions of a group share their reference.
    distinct = sorted({text for pair in usable for text in pair}, key=len)
    embeddings: dict[str, Any] = {}
    for start in range(0, len(distinct), batch_size):
        chunk = distinct[start : start + batch_size]
        embeddings.update(zip(chunk, _embed(chunk, model, max_length), strict=True))
    return [
        None
        if not _has_text(reference)
        else _cosine(embeddings[text], embeddings[reference])
        if _has_text(text)
        else 0.0
        for text, reference in pairs
    ]


def _has_text(text: Any) -> bool:
    return isinstance(text, str) and bool(text.strip())


def _cosine(one: Any, other: Any) -> float:
    return min(1.0, max(0.0, float(one @ other)))


def _embed(texts: list[str], model: str, max_length: int) -> Any:
    """One embedding of length 1 per text, as a float64 array.  (N texts, T tokens) -> (N, H)"""
    import torch

    tokenizer, encoder = _encoder(model)
    positions = getattr(encoder.config, "max_position_embeddings", None) or max_length
    tokens = tokenizer(
        [
            text.encode("utf-8", "replace").decode() for text in texts
        ],  # half a surrogate pair is no text to a tokenizer
        padding=True,
        truncation=True,
        max_length=min(max_length, positions, tokenizer.model_max_length),
        return_tensors="pt",
    )
    with torch.inference_mode():
        hidden = encoder(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).last_hidden_state
    mask = tokens["attention_mask"][..., None]  # (N, T, 1)
    # The sum points where the mean does, and only the direction counts.
    return torch.nn.functional.normalize((hidden.double() * mask).sum(dim=1), dim=1).numpy()


@lru_cache(maxsize=2)
def _encoder(model: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        # On the right, padding moves no token to another position.
        tokenizer = AutoTokenizer.from_pretrained(model, padding_side="right")
        encoder = AutoModel.from_pretrained(model, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise RewardSpecError(
            f"embedding_similarity: model={model!r} cannot be loaded ({error}). Set it to an encoder's name on the "
            "Hub, or to a folder that `save_pretrained` wrote with its tokenizer."
        ) from error
    # Which token pads is of no consequence, because padding is masked.
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer, encoder.eval()
