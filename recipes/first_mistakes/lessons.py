"""The reward model, and what it reads of traces: encoded, learned from, scored."""

import argparse
import time
from collections.abc import Sequence
from typing import Any

from grpo_hf.errors import DataError

from .traces import Trace

# Traces per forward pass when held-out traces are scored.
SCORING_BATCH = 4
# Training prints its mean loss after this many steps.
STEPS_PER_REPORT = 10

# Prompt ids, completion ids, and the position of each step's last token in the completion.
Encoded = tuple[list[int], list[int], list[int]]


def load(settings: argparse.Namespace) -> tuple[Any, Any]:
    """Return the tokenizer, and an untrained reward model on the frozen base."""
    import torch
    from peft import LoraConfig, get_peft_model
    from trl import ModelConfig

    from grpo_hf.models.loading import load_base, load_tokenizer
    from grpo_hf.reward_models.model import RewardModel

    targets = settings.lora_target_modules
    # The command line always gives a list. PEFT knows "all-linear" as a string only; in a list it
    # would be the name of a module.
    if targets == ["all-linear"]:
        targets = "all-linear"
    lora = LoraConfig(
        r=settings.lora_r,
        lora_alpha=2 * settings.lora_r,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    tokenizer = load_tokenizer(settings.model_name_or_path)
    # float32 is fast enough for models of this size, and every device supports it.
    base = load_base(ModelConfig(model_name_or_path=settings.model_name_or_path, dtype="float32"))
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    # `RewardModel.on` adds its own adapter beside a policy's adapter, with the same LoRA settings.
    # The policy itself is not trained here.
    policy = get_peft_model(base, lora).to(device)
    return tokenizer, RewardModel.on(policy, tokenizer, seed=settings.seed)


def encode(tokenizer: Any, trace: Trace, max_length: int) -> Encoded:
    """Return prompt ids, completion ids, and the position of each step's last token.

    The last token of a step is its line break. Steps that do not end within `max_length` tokens,
    the prompt included, are left out.
    """
    from grpo_hf.data.prompts import PromptForm, prompt_builder, prompt_token_ids

    form = PromptForm(chat=tokenizer.chat_template is not None)
    prompt = prompt_builder(form)(trace.problem)
    (prompt_ids,) = prompt_token_ids([prompt], tokenizer)
    completion: list[int] = []
    ends: list[int] = []
    for step in trace.steps:
        # Every step is tokenized by itself, so that no token crosses the end of a step.
        ids = tokenizer(f"{step}\n", add_special_tokens=False)["input_ids"]
        if len(prompt_ids) + len(completion) + len(ids) > max_length:
            break
        completion += ids
        ends.append(len(completion) - 1)
    return prompt_ids, completion, ends


def lesson(
    tokenizer: Any, trace: Trace, max_length: int
) -> tuple[list[int], list[int], list[int], list[float]]:
    """Return a training row: a trace as `encode` does, cut after its last label, and its labels.

    Attention is causal, so the tokens after the last labelled step would change no labelled score.
    """
    prompt_ids, completion, ends = encode(tokenizer, trace, max_length)
    ends = ends[: len(trace.labels)]
    # A prompt that fills `max_length` leaves no step; `lessons_of` drops such a trace.
    length = ends[-1] + 1 if ends else 0
    return prompt_ids, completion[:length], ends, trace.labels[: len(ends)]


def columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    """Return the columns of a list of rows."""
    return list(map(list, zip(*rows, strict=True)))


def fit(model: Any, tokenizer: Any, train: Sequence[Trace], settings: argparse.Namespace) -> None:
    """Train the reward model, and print its progress.

    Raises:
        DataError: no step of a training trace fits into --max_length.
    """
    longest = min(settings.max_length, model.longest)
    lessons = lessons_of(tokenizer, train, longest)
    tokens = describe_lessons(lessons, len(train), longest)
    start = time.perf_counter()
    recent: list[float] = []

    def progress(step: int, steps: int, loss: float) -> None:
        recent.append(loss)
        if step % STEPS_PER_REPORT == 0 or step == steps:
            mean = sum(recent) / len(recent)
            seconds = time.perf_counter() - start
            print(f"step {step}/{steps}  loss {mean:.3f}  {seconds:.0f} s", flush=True)
            # The next line reports the mean since this one.
            recent.clear()

    model.fit_steps(
        *columns(lessons),
        learning_rate=settings.learning_rate,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        seed=settings.seed,
        progress=progress,
    )
    # Every epoch reads all tokens again.
    print(f"{settings.epochs * tokens / (time.perf_counter() - start):.0f} tokens/s", flush=True)


def lessons_of(tokenizer: Any, train: Sequence[Trace], longest: int) -> list[tuple[Any, ...]]:
    """Return the training rows of all traces that have a step within `longest` tokens.

    Raises:
        DataError: there is no such trace.
    """
    lessons = []
    for trace in train:
        row = lesson(tokenizer, trace, longest)
        ends = row[2]
        if ends:
            lessons.append(row)
    if not lessons:
        raise DataError(
            f"no step of a training trace ends within {longest} tokens. Set --max_length higher."
        )
    return lessons


def describe_lessons(lessons: Sequence[tuple[Any, ...]], traces: int, longest: int) -> int:
    """Print the size of the training data, and return its number of tokens."""
    tokens = 0
    steps = 0
    wrong = 0
    for prompt_ids, completion, _, labels in lessons:
        tokens += len(prompt_ids) + len(completion)
        steps += len(labels)
        wrong += labels.count(0.0)
    print(
        f"{len(lessons)} traces, {tokens} tokens, {steps} labelled steps, {wrong} of them wrong; "
        f"{traces - len(lessons)} traces have no step within {longest} tokens",
        flush=True,
    )
    return tokens


def score(
    model: Any, tokenizer: Any, held_out: Sequence[Trace], settings: argparse.Namespace
) -> list[list[float]]:
    """Return the scores of the steps of every held-out trace."""
    start = time.perf_counter()
    longest = min(settings.max_eval_length, model.longest)
    rows = []
    for trace in held_out:
        rows.append(encode(tokenizer, trace, longest))
    scores = []
    for values in model.step_scores(*columns(rows), batch_size=SCORING_BATCH):
        scores.append(values.tolist())
    seconds = time.perf_counter() - start
    print(f"scored {len(held_out)} held-out traces in {seconds:.0f} s", flush=True)
    return scores
