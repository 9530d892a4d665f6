"""Stop strings for a trainer that gives `generate` no tokenizer, and cuts at tokens only.

With TRL 1.16 `generation_kwargs={"stop_strings": ...}` ends in an error of `generate`, which finds
no tokenizer; and rows that ended at a string would keep the padding behind it.

Shapes: B rows, P tokens of a padded prompt.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, StoppingCriteriaList, StopStringCriteria


class StopStrings:
    """The stop strings of a call of `generate`, and where its rows ended at them."""

    def __init__(self, tokenizer: Any, config: GenerationConfig) -> None:
        """Read the stop strings of a call.

        Args:
            config: of the call, with the model's own settings filled in.
        """
        self._criterion = None
        self.for_generate: dict[str, Any] = {}
        self._ends: list[int] | None = None
        # Without a tokenizer `generate` raises as ever.
        if config.stop_strings is not None and tokenizer is not None:
            self._criterion = StopStringCriteria(tokenizer, config.stop_strings)
            self.for_generate = {"tokenizer": tokenizer}

    @contextmanager
    def as_criterion(self, own: GenerationConfig, call: Mapping[str, Any]) -> Iterator[Any]:
        """Yield a call that has the strings as a stopping criterion, not as a setting.

        transformers 5.23 loses the tokenizer of a call with another decoding loop, and raises where
        it finds stop strings in the settings all the same.

        Args:
            own: the model's settings, which fill in what those of the call leave open; they are as
                they were after the block.
        """
        if self._criterion is None:
            yield call
            return
        config = call["generation_config"]
        before = (own.stop_strings, config.stop_strings)
        own.stop_strings = config.stop_strings = None
        try:
            yield {**call, "stopping_criteria": StoppingCriteriaList([self._criterion])}
        finally:
            own.stop_strings, config.stop_strings = before

    def find_ends(self, sequences: Tensor, width: int) -> None:
        """Note where each row ended at a stop string.

        Args:
            sequences (B, P + longest completion): what `generate` returned.
            width: P.
        """
        if self._criterion is None:
            return
        longest = sequences.shape[1] - width
        ends = [longest] * len(sequences)
        for length in reversed(range(1, longest + 1)):
            stopped = self._criterion(sequences[:, : width + length], None)
            for row in stopped.nonzero()[:, 0].tolist():
                ends[row] = length
        self._ends = ends

    def cut(self, completions: Sequence[list[int]]) -> list[list[int]]:
        """Cut completions behind their stop strings, where the padding of `generate` begins."""
        if self._ends is None:
            return list(completions)
        return [ids[:end] for ids, end in zip(completions, self._ends, strict=True)]
