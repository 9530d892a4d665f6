"""Whether a model can be sampled by groups: measured against `generate`, not looked up.

The ends of two prompts of the run, two copies of each, go both ways with the settings of the run.
Every token is the one that `generate` finds best, so the texts stay the same and the scores behind
them can be compared. Copies part at their first token, write the same second one, and end at
different times: a state that reached another row would show in the scores.

Shapes: B rows, P tokens of a padded prompt, V vocabulary.
"""

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from ..errors import NotGroupableError
from ..models.measuring import without_dropout
from ..models.random_state import own_random_numbers

# How many tokens are written. Of the first prompt, the first copy ends behind two of them; of the
# second, the second copy behind three.
_TOKENS = 5
_ENDING = {(0, 0): 2, (1, 1): 3}
# How much of the prompts is read, the tokens before the first one that is written.
_LENGTHS = (8, 5)
_COPIES = 2

# What rounding may do to a score, on average, as a share of the scores' standard deviation. Half
# precision has 8 bits, and its bound is several times what one more token of padding does to the
# scores of `generate` itself.
_TOLERANCE = 1e-3
_TOLERANCE_HALF = 5e-2
_TIMES_NOISE = 4

Text = tuple[int, ...]


class Reference:
    """What `generate` writes at the ends of two prompts of a run, and its scores."""

    def __init__(
        self,
        model: Any,
        generate: Callable[..., Any],
        config: GenerationConfig,
        call: Mapping[str, Any],
        *,
        half: bool,
    ) -> None:
        """Generate, greedily.

        Args:
            model: with its adapters, as the run samples from it.
            generate: the model's own.
            config: of the call, with the model's own settings filled in.
            call: what the run calls `generate` with: the prompts, `input_ids` and `attention_mask`,
                (B, P), its settings, `generation_config`, and what else there is.
            half: whether the model computes in half precision.

        Raises:
            Exception: whatever `generate` raises.
        """
        self._model = model
        self._run = generate
        ids, mask = _ends_of_prompts(call["input_ids"], call["attention_mask"])
        settings = _short(call["generation_config"], clock=config.max_time is not None)
        self._call = {**call, "input_ids": ids, "attention_mask": mask}
        self._call["generation_config"] = settings
        declared = config.eos_token_id
        ends = declared if isinstance(declared, list) else [declared]
        self._ends = [end for end in ends if end is not None]
        self._width = ids.shape[1]
        self._leader = _Steering(self._width, self._ends)
        self._tokens = self._generate(self._leader)
        self._tolerance = _TOLERANCE
        noise = self._noise() if half else None
        # The autocast of a run does not reach `generate` below an adapter: what moves, but by no
        # more than in float32, is not rounded to half.
        if noise is not None and not 0 < noise < _TOLERANCE:
            self._tolerance = max(_TOLERANCE_HALF, _TIMES_NOISE * noise)

    def why_not(self, sample: Callable[..., Tensor]) -> str | None:
        """Return why a decoding loop does not do what `generate` does, or None if it does.

        Args:
            sample: for `generate(custom_generate=...)`.
        """
        follower = _Steering(self._width, self._ends, self._leader)
        reason = self._why_not_following(follower, sample)
        if reason is not None:
            return reason
        difference = _difference(self._leader.scores, follower.scores)
        # Written so that a difference of NaN is refused as well.
        if not difference <= self._tolerance:
            return (
                f"its scores by groups are {difference:.1e} of their deviation from those of "
                "`generate`"
            )
        return None

    def why_not_running(self, sample: Callable[..., Tensor]) -> str | None:
        """Return why a decoding loop does not run, whatever its scores are, or None if it does."""
        return self._why_not_following(_Steering(self._width, self._ends, self._leader), sample)

    def _why_not_following(
        self, follower: "_Steering", sample: Callable[..., Tensor]
    ) -> str | None:
        try:
            tokens = self._generate(follower, custom_generate=sample)
        except NotGroupableError as error:
            return str(error)
        # Layers and caches raise whatever they like where they meet what they were not made for.
        except Exception as error:
            return f"it cannot be sampled by groups ({type(error).__name__}: {error})"
        if not torch.equal(tokens, self._tokens):
            return "it writes other tokens by groups than with `generate`"
        return None

    def _noise(self) -> float:
        """Return what one more token of padding does to the scores of `generate`."""
        padded = {name: pad(self._call[name], (1, 0)) for name in ("input_ids", "attention_mask")}
        follower = _Steering(self._width, self._ends, self._leader, padding=1)
        self._generate(follower, **padded)
        return _difference(self._leader.scores, follower.scores)

    def _generate(self, steering: "_Steering", **changed: Any) -> Tensor:
        call = {**self._call, **changed, "logits_processor": LogitsProcessorList([steering])}
        with ExitStack() as stack:
            # A row's score depends on its text, whatever dropout or a draw would make of it.
            stack.enter_context(without_dropout(self._model))
            stack.enter_context(own_random_numbers(0))
            # The run itself warns of its settings, and with its own lengths.
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            output = self._run(**call)
        return output[:, call["input_ids"].shape[1] :]


class _Steering(LogitsProcessor):
    """Record the scores that follow each text, and leave one token possible.

    Rows are known by their texts, and rows that are equal so far by their order: the two ways have
    their rows in another order, and drop them at other times.
    """

    def __init__(
        self,
        width: int,
        ends: list[int],
        leader: "_Steering | None" = None,
        *,
        padding: int = 0,
    ) -> None:
        """Prepare for one call of `generate`.

        Args:
            width: P.
            ends: tokens that end a text.
            leader: that of another call, whose tokens are written again.
            padding: tokens that this call has in front of each prompt, and the leader has not.
        """
        self.scores: dict[Text, Tensor] = {}
        self.choices: dict[tuple[Text, int], int] = {}
        self._width = width
        self._ends = ends
        self._leader = leader
        self._padding = padding
        # By prompt, in the order in which they came: the first token of each copy.
        self._first: dict[Text, list[int]] = {}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        texts = [tuple(ids) for ids in input_ids[:, self._padding :].tolist()]
        before: Counter[Text] = Counter()
        second: dict[Text, int] = {}
        chosen = []
        for text, of_row in zip(texts, scores.float(), strict=True):
            # What follows an end is of no text.
            if not set(self._ends) & set(text[self._width :]):
                self.scores[text] = of_row.clone()
            place = before[text]
            before[text] += 1
            if self._leader is None:
                self.choices[text, place] = self._choose(text, place, of_row, second)
            choices = (self._leader or self).choices
            # A text that the leader does not have is a difference already.
            chosen.append(choices.get((text, place), 0))
        index = torch.tensor(chosen, device=scores.device)[:, None]
        return torch.full_like(scores, -torch.inf).scatter(1, index, 0.0)

    def _choose(self, text: Text, place: int, scores: Tensor, second: dict[Text, int]) -> int:
        """Return the next token of a row.

        Args:
            place: how many rows before it have the same text.
            scores (V,): of what may follow.
            second: the second token of each prompt's rows, as far as it is known.
        """
        prompt = text[: self._width]
        step = len(text) - self._width
        first = self._first.setdefault(prompt, [])
        # An end that a model likes best would leave nothing to compare.
        free = scores.index_fill(0, scores.new_tensor(self._ends, dtype=torch.long), -torch.inf)
        if step == 0:
            first.append(int(free.topk(place + 1).indices[place]))
            return first[-1]
        best = int(free.argmax())
        if step == 1:
            return second.setdefault(prompt, best)
        # Rows that have ended write padding, and may come by here with any first token.
        copy_number = first.index(text[self._width]) if text[self._width] in first else -1
        row = (list(self._first).index(prompt), copy_number)
        if self._ends and step == _ENDING.get(row):
            return self._ends[0] if row == (0, 0) else self._ends[-1]
        return best


def _ends_of_prompts(input_ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the ends of two prompts, copies of each, padded on the left, and their mask.

    Args:
        input_ids, mask (B, P): the prompts of a rollout.
    """
    if mask is None:
        mask = torch.ones_like(input_ids)
    rows: list[list[int]] = []
    for ids, seen in zip(input_ids, mask, strict=True):
        tokens = ids[seen != 0].tolist()
        if tokens and tokens not in rows:
            rows.append(tokens)
        if len(rows) == 2:
            break
    # One prompt alone, or one that another ends with, is its own second one, shortened.
    longer = rows[0][-_LENGTHS[0] :]
    # Ragged whatever they are: a single token is written twice.
    if len(longer) == 1:
        longer = longer * 2
    shorter = rows[-1][-min(_LENGTHS[1], len(longer) - 1) :]
    padding = len(longer) - len(shorter)
    # Not side by side, as rows of several groups may not be.
    block = [longer, [0] * padding + shorter] * _COPIES
    known = [[1] * len(longer), [0] * padding + [1] * len(shorter)] * _COPIES
    return input_ids.new_tensor(block), input_ids.new_tensor(known)


def _short(config: GenerationConfig, *, clock: bool) -> GenerationConfig:
    """Return the settings of a rollout for a few tokens, and with time to write them."""
    settings = copy.deepcopy(config)
    settings.update(max_new_tokens=_TOKENS, max_length=None)
    if clock:
        settings.max_time = 3600.0
    return settings


def _difference(expected: dict[Text, Tensor], found: dict[Text, Tensor]) -> float:
    """Return the largest mean difference of two ways' scores of one text.

    It is a share of the scores' standard deviation; infinite if another token is excluded.
    """
    largest = 0.0
    for text in expected.keys() & found.keys():
        finite = expected[text].isfinite()
        if not torch.equal(finite, found[text].isfinite()):
            return float("inf")
        a = expected[text][finite]
        b = found[text][finite]
        if len(a) > 1:
            largest = max(largest, ((a - b).abs().mean() / a.std().clamp(min=1e-6)).item())
    return largest
