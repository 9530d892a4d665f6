"""Whether two runs of a case are equal, and what may differ.

A case passes where TRL refuses it as well, and where both trainers end with the same weights, log
numbers and greedy texts. A way of ours that is not taken has to be announced in the log.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import trl
from torch import Tensor

import grpo_hf
from grpo_hf.config import option
from grpo_hf.errors import DataError, ModelError, ReferenceDriftError

from .differential_cases import Case
from .differential_runs import Run, greedy_of_run, greedy_prompts, move_alike, save_model, trained

# Of the length of the update, and of that of the weights, whose rounding is in every update.
TOLERANCE, ROUNDING = 1e-3, 5e-6
# In half precision: how many times the distance of TRL's own numbers from those of float32.
TIMES_NOISE = 3.0
# What is compared of the logs, by the beginning of the name.
COMPARED = ("reward", "frac_reward_zero_std", "completions/", "num_tokens", "learning_rate", "loss")
CLOCKS = ("step_time", "_runtime", "_per_second")


class Difference(AssertionError):
    """Ours is not TRL's."""


def check_case(case: Case, tokenizer: Any, folder: Path) -> str:
    """Run a case with both libraries, and compare.

    Returns:
        How it ended: `equal`, `refused by TRL`, or `refused by ours`, as it says that it does.

    Raises:
        Difference: something differs, with the case as Python code.
    """
    base = save_model(case, tokenizer, folder / "base")
    ours = _attempt(case, grpo_hf, tokenizer, base, None)
    theirs = _attempt(case, trl, tokenizer, base, ours if isinstance(ours, Run) else None)
    if isinstance(theirs, Exception):
        return f"refused by TRL: {type(theirs).__name__}: {theirs}"
    # TRL's own numbers change with padding: they are compared where there is none.
    if isinstance(ours, Run) and not case.data["even"] and _says(ours, "the padding of a row"):
        return check_case(_without_padding(case), tokenizer, folder)
    if case.training["bf16"] and "num_experts_per_tok" in case.options:
        # Rounding sends tokens to other experts, so texts of half precision say nothing.
        check_case(_in_float32(case), tokenizer, folder / "float32")
    try:
        if isinstance(ours, Exception):
            if is_refused_on_purpose(case, ours, theirs):
                return f"refused by ours: {ours}"
            raise Difference(f"TRL trains, and ours raises {type(ours).__name__}: {ours}") from ours
        if not moves_trls_reference(case):
            _compare_updates(case, ours, theirs, tokenizer, base)
            _compare_logs(case, ours, theirs)
        _compare_texts(case, ours, theirs)
    except Difference as difference:
        text = f"{difference}\n{case}\nAgain: python -m pytest {_test(case)}"
        raise Difference(text) from difference
    return "equal"


def _without_padding(case: Case) -> Case:
    training = {**case.training, "pad_to_multiple_of": None}
    return replace(case, data={**case.data, "even": True}, training=training)


def _in_float32(case: Case) -> Case:
    training = {**case.training, "bf16": False}
    return replace(case, model={**case.model, "dtype": "float32"}, training=training)


def moves_trls_reference(case: Case) -> bool:
    """Return whether TRL's reference moves with the policy, and ours does not, as README says."""
    biases = case.adapter["settings"].get("bias", "none") if case.adapter else "none"
    return case.training["beta"] > 0 and biases != "none"


def _test(case: Case) -> str:
    return f"'tests/test_differential.py::test_two_hundred_random_runs[{case.seed}]' -m slow"


def _attempt(*arguments: Any) -> Run | Exception:
    try:
        return trained(*arguments)
    except Exception as error:
        return error


def is_refused_on_purpose(case: Case, error: Exception, theirs: Run) -> bool:
    """Return whether README says that ours refuses this and TRL does not."""
    if isinstance(error, DataError):
        # TRL's run ends after no step, and calls that a success.
        return theirs.trainer.state.global_step == 0
    settings = case.adapter["settings"] if case.adapter else {}
    init = settings.get("init_lora_weights", True)
    if isinstance(error, ModelError):
        return init == "pissa"
    # An adapter that does not start as nothing has no reference that it starts from.
    return isinstance(error, ReferenceDriftError) and init is False


# Updates


def _compare_updates(case: Case, ours: Run, theirs: Run, tokenizer: Any, base: Path) -> None:
    if ours.start.keys() != theirs.start.keys():
        raise Difference(f"other weights train: {ours.start.keys() ^ theirs.start.keys()}")
    for name, weight in theirs.start.items():
        if not torch.equal(ours.start[name], weight):
            raise Difference(f"{name} starts elsewhere")
    distance = (ours.moved - theirs.moved).norm()
    length = torch.cat([weight.flatten() for weight in theirs.start.values()]).norm()
    allowed = TOLERANCE * theirs.moved.norm() + ROUNDING * length
    if case.training["bf16"] and not distance <= allowed:
        in_float32 = trained(_in_float32(case), trl, tokenizer, base, ours)
        allowed = allowed + TIMES_NOISE * (theirs.moved - in_float32.moved).norm()
    # Written so that a distance of NaN is a difference as well.
    if not distance <= allowed:
        raise Difference(
            f"the updates are {distance:.2e} apart, of {theirs.moved.norm():.2e}; allowed are "
            f"{allowed:.1e}"
        )
    if not ours.trainer.packs and option(ours.trainer.args, "packed_update"):
        _require_in_log(ours, "Packed updates are off")


def _says(run: Run, words: str) -> bool:
    return any(words in message for message in run.logged)


def _require_in_log(run: Run, beginning: str) -> None:
    if not _says(run, beginning):
        raise Difference(f"nothing in the log says {beginning!r}: {run.logged}")


# Logs


def _compare_logs(case: Case, ours: Run, theirs: Run) -> None:
    tolerance = 0.1 if case.training["bf16"] else 1e-3
    histories = ours.trainer.state.log_history, theirs.trainer.state.log_history
    if len(histories[0]) != len(histories[1]):
        raise Difference(f"{len(histories[0])} logs, and {len(histories[1])} of TRL")
    for mine, trls in zip(*histories, strict=True):
        lost = [name for name in trls if name not in mine and not name.endswith(CLOCKS)]
        if lost:
            raise Difference(f"not logged: {lost}")
        for name, value in trls.items():
            plain = name.removeprefix("eval_")
            if not plain.startswith(COMPARED) or value is None or name.endswith(CLOCKS):
                continue
            if not abs(mine[name] - value) <= tolerance * (abs(value) + 1):
                raise Difference(f"{name} is {mine[name]}, and {value} with TRL")


# Texts


def _compare_texts(case: Case, ours: Run, theirs: Run) -> None:
    half = case.training["bf16"]
    alike = not half and not moves_trls_reference(case)
    if alike and ours.written != theirs.written:
        raise Difference("other greedy texts during training")
    move_alike(case, [theirs, ours])
    prompts = greedy_prompts(case)
    try:
        expected = greedy_of_run(case, theirs, prompts)
    except Exception:
        # Sampling was not asked for by the training of this case, and TRL cannot.
        return
    with _reads(ours.trainer.model) as reads:
        written = greedy_of_run(case, ours, prompts)
    rounded = half and "num_experts_per_tok" in case.options
    for row, (mine, trls) in enumerate(zip(written, expected, strict=True)):
        if mine == trls or rounded:
            continue
        if not _is_tie(case, theirs.trainer, prompts[row], mine, trls):
            raise Difference(f"greedy text {row} is {mine}, and {trls} with TRL")
    copies = (len(prompts), max(map(len, prompts)))
    if copies in reads and option(ours.trainer.args, "grouped_rollout"):
        _require_in_log(ours, "Grouped rollouts are off")


@contextmanager
def _reads(model: Any) -> Iterator[set[tuple[int, ...]]]:
    """Collect the shapes that a model reads: rows and tokens."""
    shapes: set[tuple[int, ...]] = set()

    def watch(_: Any, positional: Any, named: dict[str, Any]) -> None:
        ids = named.get("input_ids")
        if isinstance(ids, Tensor):
            shapes.add(tuple(ids.shape))

    handle = model.register_forward_pre_hook(watch, with_kwargs=True)
    try:
        yield shapes
    finally:
        handle.remove()


def _is_tie(case: Case, trainer: Any, prompt: list[int], mine: list[int], trls: list[int]) -> bool:
    """Return whether the first tokens in which two texts differ are equally good up to rounding."""
    place = next(
        (at for at, pair in enumerate(zip(mine, trls, strict=False)) if pair[0] != pair[1]), None
    )
    if place is None or "num_beams" in case.training["generation_kwargs"]:
        return False
    model, ids = trainer.accelerator.unwrap_model(trainer.model), torch.tensor([prompt])
    config = copy.deepcopy(trainer.generation_config)
    config.update(max_new_tokens=place + 1, return_dict_in_generate=True, output_scores=True)
    model.eval()
    with torch.no_grad():
        output = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config
        )
    if output.sequences[0, len(prompt) : len(prompt) + place].tolist() != trls[:place]:
        return False
    scores = output.scores[place][0]
    gap = (scores[trls[place]] - scores[mine[place]]).abs() / scores[scores.isfinite()].std()
    return bool(gap < (0.1 if case.training["bf16"] else 1e-4))
