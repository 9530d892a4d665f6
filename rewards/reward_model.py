"""Pay what a reward model says: one trained number per text (InstructGPT, arXiv 2203.02155).

A reward model is a sequence-classification model with one label. It reads a completion after its
prompt, with its own tokenizer and its own chat template. It is loaded once and lives in the
trainer's process, because it may need the accelerator.
"""

import functools
import math
import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from grpo_hf.data.completions import Completion, completion_text, message_text
from grpo_hf.errors import RewardSpecError
from grpo_hf.rewards._options import check_number, check_text, check_whole, refuse
from grpo_hf.scoring.reward import reward_settings


@dataclass(frozen=True)
class _Scorer:
    """A loaded reward model.

    Args:
        pad_id: the padding token by which the model finds the end of a text; None if it has none.
        longest: tokens that the model can read.
    """

    name: str
    model: Any
    tokenizer: Any
    pad_id: int | None
    longest: int


def _check_options(
    model: str | os.PathLike[str] | None,
    batch_size: int,
    max_length: int,
    *,
    device: str | None,
    dtype: str,
    center: float,
    scale: float,
) -> None:
    name = os.fspath(model) if isinstance(model, os.PathLike) else model
    check_text("reward_model", "model", name, "a folder or Hub name")
    check_whole("reward_model", "batch_size", batch_size)
    check_whole("reward_model", "max_length", max_length)
    _check_device(device)
    _check_dtype(dtype)
    check_number("reward_model", "center", center)
    check_number("reward_model", "scale", scale)
    if scale == 0:
        refuse("reward_model", "scale", scale, "a number other than 0")


def _check_device(device: str | None) -> None:
    import torch

    if device is None:
        return
    expected = "a device of torch, like 'cpu' or 'cuda:1'"
    # A number is a device only where there is an accelerator.
    check_text("reward_model", "device", device, expected)
    try:
        torch.device(device)
    except RuntimeError:
        refuse("reward_model", "device", device, expected)


def _check_dtype(dtype: str) -> None:
    import torch

    is_dtype = isinstance(getattr(torch, str(dtype), None), torch.dtype)
    if dtype != "auto" and not is_dtype:
        refuse("reward_model", "dtype", dtype, "'auto' or a type of torch, like 'bfloat16'")


@reward_settings(in_process=True, batched=True, check=_check_options)
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
    """Return (score - center) / scale of the reward model's score of each completion.

    Args:
        completions: texts, or lists of messages.
        prompts: texts, or lists of messages. If prompts and completions are both messages, the
            model's chat template writes the text. Otherwise the text is the prompt's text followed
            by the completion's text.
        model: folder or Hub name of a sequence-classification model with one label, or of a PEFT
            adapter of such a model.
        batch_size: texts per forward pass. Like padding, it changes no score beyond rounding.
        max_length: tokens that the model reads, at most as many as it has positions. A longer text
            loses its beginning.
        device: where the model lives; without it an accelerator if there is one, else the CPU.
        dtype: type of the model's weights, like "bfloat16"; "auto" takes the checkpoint's type.
        center, scale: for instance mean and standard deviation of the model's scores, to make them
            comparable with other rewards.

    Returns:
        One reward per completion; None where the score is not finite, or where prompt and
        completion together have no token.

    Raises:
        RewardSpecError: the model cannot be loaded, is not a reward model, or has no chat template
            for messages; or an option is impossible.

    >>> reward_model(["42"], ["6 * 7?"], model="org/name", scale=0)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    grpo_hf.errors.RewardSpecError: reward_model: scale is 0, an int; expected a number...
    """
    _check_options(
        model, batch_size, max_length, device=device, dtype=dtype, center=center, scale=scale
    )
    scorer = _load(str(model), device, dtype)
    rows = []
    for prompt, completion in zip(prompts, completions, strict=True):
        rows.append(_token_ids(scorer, prompt, completion, max_length))
    rewards: list[float | None] = []
    for score in _scores(scorer, rows, batch_size):
        reward = (score - center) / scale
        rewards.append(reward if math.isfinite(reward) else None)
    return rewards


# Texts


def _token_ids(scorer: _Scorer, prompt: Any, completion: Completion, max_length: int) -> list[int]:
    """Return the tokens that the model reads, without padding."""
    as_chat = isinstance(prompt, list) and isinstance(completion, list)
    if as_chat and scorer.tokenizer.chat_template is None:
        raise RewardSpecError(
            f"reward_model: the tokenizer of {scorer.name!r} has no chat template, and prompts and "
            "completions are messages. Save one with it (tokenizer.chat_template), or train on "
            "prompts that are texts."
        )
    if as_chat:
        text = scorer.tokenizer.apply_chat_template([*prompt, *completion], tokenize=False)
    else:
        text = _prompt_text(prompt) + completion_text(completion)
    encoded = scorer.tokenizer(
        text,
        # A chat template writes the special tokens itself.
        add_special_tokens=not as_chat,
        truncation=True,
        max_length=min(max_length, scorer.longest),
    )
    return encoded["input_ids"]


def _prompt_text(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    # completion_text reads the assistant's messages only; every message of a prompt counts.
    return "\n".join(map(message_text, prompt))


# Scores


def _scores(scorer: _Scorer, rows: list[list[int]], batch_size: int) -> list[float]:
    """Return the model's number for each row, in the order of `rows`; NaN for an empty row."""
    scores = [math.nan] * len(rows)
    # Rows of one length need no padding, so rows are sorted by length. The longest are first, so
    # that memory runs out in the first batch or never.
    order = []
    for index, row in enumerate(rows):
        if row:
            order.append(index)
    order.sort(key=lambda index: len(rows[index]), reverse=True)
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        batch = list(map(rows.__getitem__, indices))
        for index, score in zip(indices, _forward(scorer, batch), strict=True):
            scores[index] = score
    return scores


def _forward(scorer: _Scorer, rows: list[list[int]]) -> list[float]:
    """Return the score of each row, from one forward pass."""
    import torch

    pad_id = scorer.pad_id
    if pad_id is None:
        pad_id = _unused_last_token(rows)
    scorer.model.config.get_text_config().pad_token_id = pad_id
    shape = (len(rows), max(map(len, rows)))
    input_ids = torch.full(shape, pad_id)  # (B, T)
    mask = torch.zeros(shape, dtype=torch.long)  # (B, T)
    for index, row in enumerate(rows):
        # Padding on the right moves no token to another position.
        input_ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = 1
    device = scorer.model.device
    with torch.inference_mode():
        output = scorer.model(input_ids=input_ids.to(device), attention_mask=mask.to(device))
    return output.logits.squeeze(-1).float().tolist()


def _unused_last_token(rows: list[list[int]]) -> int:
    """Return a token in which no row ends, to pad for a model that has no padding token.

    A decoder reads its score at the last token that is not the padding token. A model that was
    trained without a padding token has to read it at the last token of the row.
    """
    last_tokens = {row[-1] for row in rows}
    token = 0
    while token in last_tokens:
        token += 1
    return token


# Model


@functools.cache
def _load(name: str, device: str | None, dtype: str) -> _Scorer:
    """Load the model once per process, without a change to the trainer's random state."""
    import torch

    # The weights are made on the CPU and moved, so only the CPU's generator is drawn from.
    with torch.random.fork_rng(devices=[]):
        model, tokenizer = _load_files(name, dtype)
    if model.config.num_labels != 1:
        raise RewardSpecError(
            f"reward_model: {name!r} has {model.config.num_labels} labels; expected 1, the reward. "
            "A classifier cannot be used as it is: write a reward that says what its classes are "
            "worth."
        )
    # The end of a text is the answer; its beginning may be cut off.
    tokenizer.truncation_side = "left"
    config = model.config.get_text_config()
    # Some checkpoints name a padding token for which they have no embedding, like -1.
    has_pad_id = config.pad_token_id is not None and 0 <= config.pad_token_id < config.vocab_size
    positions = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    return _Scorer(
        name=name,
        model=model.to(_device(device)).eval().requires_grad_(False),
        tokenizer=tokenizer,
        pad_id=config.pad_token_id if has_pad_id else None,
        longest=min(positions, tokenizer.model_max_length),
    )


def _device(device: str | None) -> Any:
    import torch

    if device is None:
        if torch.accelerator.is_available():
            return torch.accelerator.current_accelerator()
        return torch.device("cpu")
    return torch.device(device)


def _load_files(name: str, dtype: str) -> tuple[Any, Any]:
    """Return the model, on the CPU, and its tokenizer."""
    from transformers.utils import find_adapter_config_file

    try:
        if find_adapter_config_file(name) is not None:
            return _load_adapter(name, dtype)
        return _load_whole(name, dtype)
    # A RewardSpecError is a ValueError, and it says already what is wrong.
    except RewardSpecError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise RewardSpecError(
            f"reward_model: {name!r} cannot be loaded: {reason} Expected a folder or Hub name of a "
            "sequence-classification model with one label, or of a PEFT adapter of one, with its "
            "tokenizer."
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
    from transformers import AutoModelForSequenceClassification

    base_name = PeftConfig.from_pretrained(name).base_model_name_or_path
    base, loading = AutoModelForSequenceClassification.from_pretrained(
        base_name, dtype=dtype, num_labels=1, output_loading_info=True
    )
    # The base is mostly a language model, and the adapter holds the head that the base lacks.
    missing = set(loading["missing_keys"])
    for key in load_peft_weights(name, device="cpu"):
        missing.discard(key.removeprefix("base_model.model."))
    _refuse_random(name, missing)
    tokenizer = _adapter_tokenizer(name, base_name, base.config.get_text_config())
    return PeftModel.from_pretrained(base, name, torch_device="cpu"), tokenizer


def _adapter_tokenizer(name: str, base_name: str, base_config: Any) -> Any:
    """Return the adapter's own tokenizer if it has one, else the tokenizer of its base."""
    from transformers import AutoTokenizer

    try:
        # It was used in training, and may have a chat template of its own.
        tokenizer = AutoTokenizer.from_pretrained(name)
        # TRL and grpo-hf train adapters to be read before this padding token. The base model's
        # padding token may never have been used.
        base_config.pad_token_id = tokenizer.pad_token_id
        return tokenizer
    except (OSError, ValueError):
        return AutoTokenizer.from_pretrained(base_name)


def _refuse_random(name: str, missing: Collection[str]) -> None:
    if missing:
        raise RewardSpecError(
            f"reward_model: {name!r} lacks weights of a reward model "
            f"({', '.join(sorted(missing)[:3])}), so its scores would be random. Expected a model "
            "that was trained as a reward model, not a language model."
        )
