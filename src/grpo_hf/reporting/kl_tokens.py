"""The KL of single tokens: their median and maximum as numbers, the largest on disk.

The mean that TRL logs is that of k3 = r − log r − 1, with r = π_ref / π_θ, over all tokens of a
step. It grows as r where the reference finds a token likely that the policy does not, so a single
token can make the mean of thousands. What is needed is there when the loss is computed: the
log-probabilities of policy and reference. So this costs no forward, and one wait for a device per
optimizer step.

Shapes: B rows of a micro-batch, C the width of its completions, P that of its prompts, W processes,
k the tokens that are kept.
"""

import json
import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import StatisticsError
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from transformers import TrainerCallback

from .. import run_files
from ..algorithm.objective import importance_ratio, kl_estimate
from ..config import option
from ..process_log import get_logger
from ..trl_seam import KLTerm
from .spikes import KL_FILE, Line, Token, UsualKL, read_lines, spike_text
from .token_credit import token_texts

# It speaks in the main process alone.
logger = get_logger(__name__)

# Tokens that are kept of a logged step: what makes a spike is one or a few.
_KEPT = 3
# Tokens around one of them that are shown.
_BEFORE, _AFTER = 6, 3
# Characters of a prompt and of a completion that are kept.
_LONGEST = 2_000
# Spikes that are said; a run that falls apart may have many.
_SAID = 5


@dataclass(frozen=True)
class _Note:
    """What is kept of a micro-batch until its optimizer step ends, on its device.

    Args:
        kl (B·C,): of each token, NaN where the loss leaves a token out.
        largest (3, k): KL and log-probabilities, policy and reference, of the largest tokens.
        places (k,): their places in the completions.
        rows (2, k, P + C): the token ids of prompt and completion, and whether they are there.
        prompt_width: P.
    """

    kl: Tensor
    largest: Tensor
    places: Tensor
    rows: Tensor
    prompt_width: int


@dataclass(frozen=True)
class _Large:
    """A token with a large KL, as token ids."""

    kl: float
    policy: float
    reference: float
    step: int
    place: int
    prompt: list[int]
    completion: list[int]


class KLTokens(TrainerCallback):
    """A callback that logs `kl/median` and `kl/max`, and keeps the tokens with the largest KL.

    Each logged step appends a line to `kl_tokens.jsonl`, and a spike is said with its token. With
    β = 0 there is no KL, and nothing happens.
    """

    def __init__(self, term: KLTerm, tokenizer: Any, accelerator: Accelerator) -> None:
        self._term = term
        self._tokenizer = tokenizer
        self._accelerator = accelerator
        self._notes: deque[_Note] = deque(maxlen=1)
        self._forget()
        # The lines of the run so far, by which a spike is known.
        self._usual = UsualKL()
        self._said = 0

    def _forget(self) -> None:
        """Begin a new line."""
        self._spreads: list[tuple[float, float, int, float]] = []
        self._largest: list[_Large] = []

    @contextmanager
    def noted(self, inputs: dict[str, Any], args: Any) -> Iterator[None]:
        """Note the KL of a micro-batch whose loss is computed inside the block.

        Args:
            inputs: what the loss is computed of.
            args: of the run.
        """
        # TRL 1.16 adds them where β is not 0.
        if "ref_per_token_logps" not in inputs:
            yield
            return
        with self._term.log_probs_recorded() as recorded:
            yield
        if recorded:
            # A replayed loss ends no step, so only those of the last step may stay.
            if self._notes.maxlen != args.gradient_accumulation_steps:
                self._notes = deque(self._notes, maxlen=args.gradient_accumulation_steps)
            self._notes.append(_note(recorded[0], inputs, args))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take up the lines of a run that goes on."""
        self._notes.clear()
        self._forget()
        self._usual = UsualKL()
        for line in read_lines(Path(args.output_dir)):
            if line.step <= state.global_step:
                self._usual.add(line)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Log the spread of the step's KL, and close a line where the step is logged."""
        if not self._notes:
            return
        kl = torch.cat([note.kl for note in self._notes]).float()
        # Processes have micro-batches of different widths.
        padded = self._accelerator.pad_across_processes(kl, pad_index=math.nan)
        every = self._accelerator.gather(padded)
        counted = every[~every.isnan()]
        if len(counted):
            numbers = [counted.mean(), counted.median(), counted.max(), counted.sum()]
            own, median, largest, total = torch.stack(numbers).tolist()
            self._term.log_spread(median, largest)
            self._spreads.append((self._mean_of_step(own), median, len(counted), total))
        for note in self._notes:
            self._largest += _large_tokens(note, state.global_step)
        self._largest = _top(self._largest)
        self._notes.clear()
        if control.should_log:
            self._end_line(args, state)

    def _mean_of_step(self, own: float) -> float:
        """Return the KL that TRL logs of a step: a spike is said with the number of its step line.

        Args:
            own: the mean of all tokens, which stands where TRL logs none, as with β set to 0 while
                a run trains, or no finite number.
        """
        # The list may still hold earlier steps.
        if self._term.beta == 0:
            return own
        try:
            logged = self._term.kl_of_step()
        except StatisticsError:
            return own
        return logged if math.isfinite(logged) else own

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close a line where epochs are logged."""
        if control.should_log:
            self._end_line(args, state)

    def _end_line(self, args: Any, state: Any) -> None:
        """Write the line of the steps since the last one, and say a spike."""
        if not self._spreads:
            return
        largest = _top(gather_object(self._largest))
        line = self._line(state.global_step, largest)
        self._forget()
        if not state.is_world_process_zero:
            return
        text = spike_text(line, self._usual)
        self._usual.add(line)
        self._write(args, line, text)
        if text is not None and self._said < _SAID:
            self._said += 1
            logger.warning(text)

    def _line(self, step: int, largest: list[_Large]) -> Line:
        """Return the numbers of the steps since the last line, with the largest tokens in words."""
        means, medians, counts, totals = zip(*self._spreads, strict=True)
        tokens = [_in_words(each, self._tokenizer) for each in largest]
        return Line(
            step=step,
            # Of steps, as TRL's own mean.
            mean=sum(means) / len(means),
            median=sum(medians) / len(medians),
            max=max((token.kl for token in tokens), default=0.0),
            tokens=sum(counts),
            total=sum(totals),
            largest=tokens,
        )

    def _write(self, args: Any, line: Line, text: str | None) -> None:
        """Append a line; the texts of prompt and completion are kept of a spike alone."""
        # It holds parts of completions, as the file of the credit does.
        if not option(args, "log_credit"):
            return
        row = asdict(line) | {"spike": text}
        if text is None:
            for token in row["largest"]:
                del token["prompt"], token["completion"]
        content = json.dumps(row, ensure_ascii=False, separators=(",", ":"))
        run_files.append_lines(Path(args.output_dir) / KL_FILE, [content + "\n"])


def _note(policy: Tensor, inputs: dict[str, Any], args: Any) -> _Note:
    """Return what is kept of a micro-batch: no number of it waits for the device.

    Args:
        policy (B, C): log-probabilities.
    """
    reference = inputs["ref_per_token_logps"]
    counted = (inputs["completion_mask"] * inputs.get("tool_mask", 1)).bool()
    kl = kl_estimate(policy, reference)
    if args.use_bias_correction_kl:
        old = inputs.get("old_per_token_logps", policy)
        kl = kl * importance_ratio(policy, old, counted, level=args.importance_sampling_level)
    # A ratio beyond float32 is still the largest, and JSON has no infinity.
    kl = kl.float().clamp(max=torch.finfo(torch.float32).max)
    ranked = kl.masked_fill(~counted | kl.isnan(), -1).flatten()
    top, places = ranked.topk(min(_KEPT, ranked.numel()))
    chosen = places // kl.shape[1]
    of_both = [policy.flatten()[places].float(), reference.flatten()[places].float()]
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    there = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    return _Note(
        kl=kl.masked_fill(~counted, math.nan).flatten(),
        largest=torch.stack([top, *of_both]),
        places=places % kl.shape[1],
        rows=torch.stack([ids[chosen], there[chosen].to(ids)]),
        prompt_width=inputs["prompt_ids"].shape[1],
    )


def _large_tokens(note: _Note, step: int) -> list[_Large]:
    """Return the largest tokens of a micro-batch, off its device."""
    found = []
    numbers = note.largest.T.tolist()
    places = note.places.tolist()
    all_ids, all_there = note.rows.tolist()
    for (kl, policy, reference), place, ids, there in zip(
        numbers, places, all_ids, all_there, strict=True
    ):
        # Below 0 is what the loss leaves out, where there are too few other tokens.
        if kl < 0:
            continue
        width = note.prompt_width
        prompt = [token for token, has in zip(ids[:width], there[:width], strict=True) if has]
        # Up to the token every place holds one, so it keeps its place.
        completion = [token for token, has in zip(ids[width:], there[width:], strict=True) if has]
        found.append(_Large(kl, policy, reference, step, place, prompt, completion))
    return found


def _top(tokens: list[_Large]) -> list[_Large]:
    return sorted(tokens, key=lambda token: -token.kl)[:_KEPT]


def _in_words(large: _Large, tokenizer: Any) -> Token:
    """Return a token with the texts around it."""
    place = large.place
    texts = token_texts(tokenizer.decode, large.completion)
    prompt = tokenizer.decode(large.prompt)
    completion = "".join(texts)
    return Token(
        text=texts[place],
        before="".join(texts[max(0, place - _BEFORE) : place]),
        after="".join(texts[place + 1 : place + 1 + _AFTER]),
        kl=large.kl,
        policy=large.policy,
        reference=large.reference,
        step=large.step,
        place=place,
        prompt=prompt[-_LONGEST:],
        completion=completion[:_LONGEST],
    )
