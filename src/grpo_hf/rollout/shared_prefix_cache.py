"""Attention while decoding on a CPU, where many rows continue one prompt: the prompt's states are kept and read once.

The usual cache holds a copy of the prompt for every row, reads all of them for each new token, and copies them to
append to them. A `Fork` keeps the states of the prompts where the prefill left them. Each row adds its own, into room
that is set aside, and the two parts of its attention are joined by their normalisers, as in update/packed_attention.py.

Shapes: R rows, H query heads, K key and value heads, D values per head, t tokens that a row has added.
"""

from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from ..trl_seam import attention_implementation, cpu_attention
from ..update.packed_attention import KNOWN_OPTIONS, as_autocast, join, read_layouts


class Fork:
    """Rows that continue shared prompts, for one rollout.

    It first watches the prefill, to see whether it can serve the model at all.
    """

    def __init__(self) -> None:
        self._seen: set[nn.Module] = set()
        self._strange: set[str] = set()
        self._prompts: dict[int, tuple[Tensor, Tensor]] | None = None  # by layer: (N, K, P, D) each
        self._rows: list[int] = []  # how many rows continue each prompt; they lie side by side
        self._padding: list[int] = []  # on the left of each prompt

    @classmethod
    def for_model(cls, model: Any) -> "Fork | None":
        """A fork that may serve the model: on a CPU, with torch's own attention, called with any keyword."""
        accepts_any = any(
            x.kind is Parameter.VAR_KEYWORD
            for x in signature(type(model).forward).parameters.values()
        )
        implementation = attention_implementation(model.config.get_text_config())
        if model.device.type != "cpu" or implementation != "sdpa" or not accepts_any:
            return None
        read_layouts("sdpa")
        return cls()

    def take(self, cache: Cache, prompt_of: Tensor, padding: Tensor, limit: int) -> bool:
        """Take the prompts out of a cache after the prefill, so that it holds what rows add.

        Args:
            prompt_of (`Tensor` of shape (R,)): the prompt of each row, ascending.
            padding (`Tensor` of shape (N,)): tokens of padding on the left of each prompt.
            limit (`int`): how many tokens a row may add.

        Returns:
            `bool`: whether it could; if not, the cache is as it was.
        """
        plain = all(type(layer) is DynamicLayer for layer in cache.layers)
        if not plain or self._strange or len(self._seen) != len(cache.layers):
            return False
        self._prompts = {
            index: (layer.keys, layer.values) for index, layer in enumerate(cache.layers)
        }
        self._rows, self._padding = (
            torch.bincount(prompt_of, minlength=len(padding)).tolist(),
            padding.tolist(),
        )
        cache.layers = [_Added(limit) for _ in cache.layers]
        return True

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only, ascending, as `Cache.batch_select_indices` does."""
        prompt_of = torch.repeat_interleave(torch.tensor(self._rows))[rows]
        self._rows = torch.bincount(prompt_of, minlength=len(self._rows)).tolist()

    def attend(
        self,
        original: Callable[..., Any],
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Any,
        **options: Any,
    ) -> Any:
        """In the place of a model's attention function; `key` and `value` are what rows have added, (R, K, t, D)."""
        if self._prompts is None:
            self._seen.add(module)
            others = {
                name: given
                for name, given in options.items()
                if name not in {*KNOWN_OPTIONS, "scaling"}
            }
            self._strange |= {name for name, given in others.items() if given not in (None, 0)}
            return original(module, query, key, value, mask, **options)
        query, key, value = as_autocast(query, key, value)
        scaling = options.get("scaling")
        # (R, H, 1, D) and its normaliser, (R, H, 1)
        added = cpu_attention(query, key, value, scaling, is_causal=False)
        keys, values = self._prompts[module.layer_idx]
        parts = []
        for index, (rows, padding, of) in enumerate(
            zip(self._rows, self._padding, self._slices(), strict=True)
        ):
            if rows:
                own = slice(index, index + 1)
                prompt = keys[own, :, padding:], values[own, :, padding:]
                output, normaliser = cpu_attention(
                    query[of].transpose(0, 2), *prompt, scaling, is_causal=False
                )  # (1, H, rows, D)
                parts.append((output.transpose(0, 2), normaliser.transpose(0, 2)))
        outputs, normalisers = zip(*parts, strict=True)
        output, _ = join((torch.cat(outputs), torch.cat(normalisers)), added)
        return output.to(query.dtype).transpose(1, 2), None

    def _slices(self) -> list[slice]:
        ends = torch.tensor(self._rows).cumsum(0).tolist()
        return [slice(end - rows, end) for rows, end in zip(self._rows, ends, strict=True)]


class _Added(DynamicLayer):
    """The states that rows add, in room set aside (transformers 5.23 copies everything at each token)."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit, self._length = limit, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        room = (*key_states.shape[:2], self._limit)
        self._keys = key_states.new_empty(*room, key_states.shape[3])
        self._values = value_states.new_empty(*room, value_states.shape[3])

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self._length = self._length, self._length + key_states.shape[2]
        self._keys[:, :, start : self._length], self._values[:, :, start : self._length] = (
            key_states,
            value_states,
        )
        return self._keys[:, :, : self._length], self._values[:, :, : self._length]

    def get_seq_length(self) -> int:
        return self._length

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.is_initialized:
            self._keys, self._values = (
                self._selected(states, indices) for states in (self._keys, self._values)
            )

    def _selected(self, states: Tensor, indices: Tensor) -> Tensor:
        room = states.new_empty(
            len(indices), *states.shape[1:]
        )  # memory that is not written costs nothing yet
        room[:, :, : self._length] = states[indices, :, : self._length]
        return room
