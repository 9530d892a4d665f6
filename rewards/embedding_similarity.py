"""Pay for meaning the same as a reference text (SBERT, arXiv 1908.10084).

The reward is the cosine of the embeddings of the two texts. An embedding is the mean of an
encoder's last hidden states over the tokens of a text. Encoders trained for it are on the Hub, for
example sentence-transformers/all-MiniLM-L6-v2. A cosine says nothing about truth ("it is 41" is
close to "it is 42"): use it beside a reward that checks the answer.
"""

from functools import lru_cache
from typing import Any

from grpo_hf.data.completions import Completion, completion_text
from grpo_hf.errors import RewardSpecError
from grpo_hf.rewards._options import check_text, check_whole
from grpo_hf.scoring.reward import reward_settings


def _check_options(model: str | None, batch_size: int, max_length: int) -> None:
    check_text("embedding_similarity", "model", model, "an encoder: a folder, or a name on the Hub")
    check_whole("embedding_similarity", "batch_size", batch_size)
    check_whole("embedding_similarity", "max_length", max_length)


@reward_settings(in_process=True, batched=True, check=_check_options, gold="answer")
def embedding_similarity(
    completions: list[Completion],
    answer: list[Any],
    *,
    model: str | None = None,
    batch_size: int = 32,
    max_length: int = 256,
    **columns: Any,
) -> list[float | None]:
    """Return max(0, cos(e(completion), e(answer))) with e the mean-pooled encoder `model`.

    An empty completion earns 0.0. The model is loaded once, stays in the trainer's process and runs
    there on the CPU, so that the accelerator's memory is left to training.

    Args:
        completions: texts, or lists of messages.
        answer: reference texts.
        model: required; an encoder for transformers' `AutoModel`: a name on the Hub, or a folder.
        batch_size: texts per forward pass.
        max_length: tokens of a text that are read; fewer if the model has fewer positions.

    Returns:
        One reward per completion; None where the reference is not a text, or is empty.

    Raises:
        RewardSpecError: no model is named, it cannot be loaded, or an option is impossible.

    Neither of these completions needs the model:

    >>> embedding_similarity(["", "42"], ["Forty-two.", None], model="any/encoder")
    [0.0, None]
    """
    _check_options(model, batch_size, max_length)
    assert model is not None
    pairs = list(zip(map(completion_text, completions), answer, strict=True))
    embeddings = _embed_pairs(pairs, model, batch_size, max_length)
    rewards: list[float | None] = []
    for text, reference in pairs:
        if not _has_text(reference):
            rewards.append(None)
        elif not _has_text(text):
            rewards.append(0.0)
        else:
            rewards.append(_cosine(embeddings[text], embeddings[reference]))
    return rewards


def _embed_pairs(
    pairs: list[tuple[str, Any]], model: str, batch_size: int, max_length: int
) -> dict[str, Any]:
    """Return the embedding of each text in the pairs that have a text on both sides."""
    # A set, because the completions of a group share their reference.
    texts = set()
    for text, reference in pairs:
        if _has_text(text) and _has_text(reference):
            texts.add(text)
            texts.add(reference)
    # Texts of similar length need little padding.
    ordered = sorted(texts, key=len)
    embeddings: dict[str, Any] = {}
    for start in range(0, len(ordered), batch_size):
        batch = ordered[start : start + batch_size]
        embeddings.update(zip(batch, _embed(batch, model, max_length), strict=True))
    return embeddings


def _has_text(text: Any) -> bool:
    return isinstance(text, str) and bool(text.strip())


def _cosine(one: Any, other: Any) -> float:
    # Rounding can bring the product of two vectors of length 1 a little above 1.
    return min(1.0, max(0.0, float(one @ other)))


def _embed(texts: list[str], model: str, max_length: int) -> Any:
    """Return one embedding of length 1 per text, as a float64 array of shape (B, H)."""
    import torch

    tokenizer, encoder = _encoder(model)
    positions = getattr(encoder.config, "max_position_embeddings", None) or max_length
    tokens = tokenizer(
        list(map(_without_surrogates, texts)),
        padding=True,
        truncation=True,
        max_length=min(max_length, positions, tokenizer.model_max_length),
        return_tensors="pt",
    )
    mask = tokens["attention_mask"]  # (B, T)
    with torch.inference_mode():
        output = encoder(input_ids=tokens["input_ids"], attention_mask=mask)
    hidden = output.last_hidden_state.double()  # (B, T, H)
    # The sum points where the mean does, and only the direction counts.
    sums = (hidden * mask[..., None]).sum(dim=1)  # (B, H)
    return torch.nn.functional.normalize(sums, dim=1).numpy()


def _without_surrogates(text: str) -> str:
    # Half a surrogate pair is no text to a tokenizer.
    return text.encode("utf-8", "replace").decode()


# Two, for a run with two rewards of this kind.
@lru_cache(maxsize=2)
def _encoder(model: str) -> tuple[Any, Any]:
    """Return the tokenizer and the encoder."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        # On the right, padding moves no token to another position.
        tokenizer = AutoTokenizer.from_pretrained(model, padding_side="right")
        encoder = AutoModel.from_pretrained(model, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise RewardSpecError(
            f"embedding_similarity: model={model!r} cannot be loaded ({error}). Set it to an "
            "encoder's name on the Hub, or to a folder that `save_pretrained` wrote with its "
            "tokenizer."
        ) from error
    # Which token pads is of no consequence, because padding is masked.
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer, encoder.eval()
