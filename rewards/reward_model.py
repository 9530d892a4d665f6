"""Pays what a reward model says: one trained number per text (InstructGPT, arXiv 2203.02155).

A reward model is a sequence-classification model with one label. It reads a completion behind its prompt, with its own
tokenizer and its own chat template. It lives in the trainer's process, because it may need the accelerator, and is
loaded once.
"""

import functools
import math
import os
from dataclasses import dataclass
from typing import Any

from grpo_hf.data.completions import Completion, completion_text
from grpo_hf.errors import RewardSpecError
from grpo_hf.scoring.reward import reward_settings


@dataclass(frozen=True)
class _Scorer:
    """A loaded reward model."""

    name: str
    model: Any
    tokenizer: Any
    pad_id: int | None  # the one that the model looks for
    longest: int  # tokens


@reward_settings(in_process=True, batched=True)
def reward_model(
    completions: list[Completion],
    prompts: list[Any],
    *,
    model: str | None = None,
    batch_size: int = 8,
    max_length: int = 2048,
    device: str | None = None,
    dtype: str = "auto",
    center: float = 0.0,
    scale: float = 1.0,
    **columns: Any,
) -> list[float | None]:
    """The reward model's score of each prompt with its completion, (score - center) / scale.

    Args:
        completions: texts, or lists of messages.
        prompts: texts, or lists of messages. If both are messages, the model's chat template writes the text; else it
            is the prompt's text followed by the completion's.
        model: folder or Hub name of a sequence-classification model with one label, or of a PEFT adapter of one.
        batch_size: texts per forward pass. Like padding, it changes no score beyond rounding.
        max_length: tokens that the model reads, at most as many as it has positions for. A longer text loses its
            beginning.
        device: where the model lives; without it an accelerator if there is one, else the CPU.
        dtype: of its weights, like "bfloat16"; "auto" takes the checkpoint's.
        center, scale: for instance mean and standard deviation of its scores, to weigh it against other rewards.

    Returns:
        One reward per completion; None where the score is not finite, or where prompt and completion have no token.

    Raises:
        RewardSpecError: the model cannot be loaded, is no reward model, has no chat template for messages; or an option
            is impossible.

    >>> reward_model(["42"], ["6 * 7?"], model="org/name", scale=0)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    grpo_hf.errors.RewardSpecError: reward_model: scale=0; expected a number other than 0...
    """
    _expect(
        isinstance(model, str | os.PathLike) and bool(str(model)),
        f"model={model!r}; expected a folder or Hub name",
    )
    for option, value in {"batch_size": batch_size, "max_length": max_length}.items():
        _expect(
            isinstance(value, int) and value >= 1,
            f"{option}={value!r}; expected a whole number, 1 or more",
        )
    _expect(_is_number(center), f"center={center!r}; expected a number")
    _expect(_is_number(scale) and scale != 0, f"scale={scale!r}; expected a number other than 0")
    scorer = _load(str(model), device, dtype)
    rows = [
        _token_ids(scorer, *pair, max_length) for pair in zip(prompts, completions, strict=True)
    ]
    scores = [(score - center) / scale for score in _scores(scorer, rows, batch_size)]
    return [score if math.isfinite(score) else None for score in scores]


def _expect(holds: bool, problem: str) -> None:
    if not holds:
        raise RewardSpecError(f"reward_model: {problem}. Change it among the reward's options.")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


# Texts


def _token_ids(scorer: _Scorer, prompt: Any, completion: Completion, max_length: int) -> list[int]:
    """What the model reads."""
    as_chat = isinstance(prompt, list) and isinstance(completion, list)
    if as_chat and scorer.tokenizer.chat_template is None:
        raise RewardSpecError(
            f"reward_model: the tokenizer of {scorer.name!r} has no chat template, and prompts and completions are "
            "messages. Save one with it (tokenizer.chat_template), or train on prompts that are texts."
        )
    if as_chat:
        text = scorer.tokenizer.apply_chat_template([*prompt, *completion], tokenize=False)
    else:
        text = _prompt_text(prompt) + completion_text(completion)
    # A chat template writes the special tokens itself.
    encoded = scorer.tokenizer(
        text,
        add_special_tokens=not as_chat,
        truncation=True,
        max_length=min(max_length, scorer.longest),
    )
    return encoded["input_ids"]


def _prompt_text(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    # completion_text reads the assistant's messages; of a prompt everybody's count.
    return completion_text([message | {"role": "assistant"} for message in prompt])


# Scores


def _scores(scorer: _Scorer, rows: list[list[int]], batch_size: int) -> list[float]:
    """The model's number for each row, in the order of `rows`; NaN for an empty one."""
    scores = [math.nan] * len(rows)
    # Neighbours of one length need no padding; the longest first, so that memory runs out at once or never.
    order = sorted(
        (index for index, row in enumerate(rows) if row),
        key=lambda index: len(rows[index]),
        reverse=True,
    )
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        for index, score in zip(
            batch, _forward(scorer, [rows[index] for index in batch]), strict=True
        ):
            scores[index] = score
    return scores


def _forward(scorer: _Scorer, rows: list[list[int]]) -> list[float]:
    """One forward pass; rows are padded on the right, where padding moves no position."""
    import torch

    pad_id = scorer.pad_id
    if pad_id is None:
        # A decoder reads its score at the last token that is not the padding token. Trained without one, it means the
        # last token, so the padding must be a token in which no row ends.
        pad_id = min(set(range(len(rows) + 1)) - {row[-1] for row in rows})
    scorer.model.config.get_text_config().pad_token_id = pad_id
    length = max(map(len, rows))
    input_ids = torch.tensor(
        [row + [pad_id] * (length - len(row)) for row in rows], device=scorer.model.device
    )
    mask = torch.tensor(
        [[1] * len(row) + [0] * (length - len(row)) for row in rows], device=scorer.model.device
    )
    with torch.inference_mode():
        logits = scorer.model(input_ids=input_ids, attention_mask=mask).logits  # (rows, 1)
    return logits.squeeze(-1).float().tolist()


# Model


@functools.cache
def _load(name: str, device: str | None, dtype: str) -> _Scorer:
    """Load once per process; the trainer's random numbers are what they were."""
    import torch
    from transformers.utils import find_adapter_config_file

    where = _device(device)
    _expect(
        dtype == "auto" or isinstance(getattr(torch, str(dtype), None), torch.dtype),
        f"dtype={dtype!r}; expected 'auto' or a type of torch, like 'bfloat16'",
    )
    # Everything is made on the CPU first, so no other generator is drawn from.
    with torch.random.fork_rng(devices=[]):
        try:
            is_adapter = find_adapter_config_file(name) is not None
            model, tokenizer = (
                _load_adapter(name, dtype) if is_adapter else _load_whole(name, dtype)
            )
        except RewardSpecError:
            raise
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise RewardSpecError(
                f"reward_model: {name!r} cannot be loaded: {reason} Expected a folder or Hub name of a "
                "sequence-classification model with one label, or of a PEFT adapter of one, with its tokenizer."
            ) from error
    if model.config.num_labels != 1:
        raise RewardSpecError(
            f"reward_model: {name!r} has {model.config.num_labels} labels; expected 1, the reward. A classifier cannot "
            "be used as it is: write a reward that says what its classes are worth."
        )
    tokenizer.truncation_side = "left"
    config = model.config.get_text_config()
    # Some checkpoints have a padding token that the embeddings do not, like -1.
    has_pad_id = config.pad_token_id is not None and 0 <= config.pad_token_id < config.vocab_size
    positions = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    return _Scorer(
        name=name,
        model=model.to(where).eval().requires_grad_(False),
        tokenizer=tokenizer,
        pad_id=config.pad_token_id if has_pad_id else None,
        longest=min(positions, tokenizer.model_max_length),
    )


def _device(device: str | None) -> Any:
    import torch

    if device is None:
        return (
            torch.accelerator.current_accelerator()
            if torch.accelerator.is_available()
            else torch.device("cpu")
        )
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise RewardSpecError(
            f"reward_model: device={device!r} is no device; expected one like 'cpu' or 'cuda:1'."
        ) from error


def _load_whole(name: str, dtype: str) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, loading = AutoModelForSequenceClassification.from_pretrained(
        name, dtype=dtype, output_loading_info=True
    )
    _refuse_random(name, loading["missing_keys"])
    return model, AutoTokenizer.from_pretrained(name)


def _load_adapter(name: str, dtype: str) -> tuple[Any, Any]:
    from peft import PeftConfig, PeftModel, load_peft_weights
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    base_name = PeftConfig.from_pretrained(name).base_model_name_or_path
    base, loading = AutoModelForSequenceClassification.from_pretrained(
        base_name, dtype=dtype, num_labels=1, output_loading_info=True
    )
    # The base is mostly a language model, and the head that it lacks is part of the adapter.
    from_adapter = {
        key.removeprefix("base_model.model.") for key in load_peft_weights(name, device="cpu")
    }
    _refuse_random(name, set(loading["missing_keys"]) - from_adapter)
    try:  # the tokenizer of its training, perhaps with a chat template of its own
        tokenizer = AutoTokenizer.from_pretrained(name)
        # By which TRL, and grpo-hf, tell where a score is read; the base's may never have been used.
        base.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    except (OSError, ValueError):
        tokenizer = AutoTokenizer.from_pretrained(base_name)
    return PeftModel.from_pretrained(base, name, torch_device="cpu"), tokenizer


def _refuse_random(name: str, missing: Any) -> None:
    if missing:
        raise RewardSpecError(
            f"reward_model: {name!r} lacks weights of a reward model ({', '.join(sorted(missing)[:3])}), so its scores "
            "would be random. Expected a model that was trained as a reward model, not a language model."
        )
