"""Attention while decoding on a CPU, where many rows continue one prompt.

The prompt's states are kept and read once.

The usual cache holds a copy of the prompt for every row, reads all of them for each new token, and
copies them to append to them. A `SharedPrefixCache` keeps the states of the prompts where the
prefill left them. Each row adds its own, into room that is set aside, and the two parts of its
attention are joined by their normalisers, as in update/packed_attention.py.

Shapes: R rows, H query heads, K key and value heads, D values per head, t tokens that a row has
added.
"""

from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from ..errors import NotGroupableError
from ..torch_seam import cpu_attention
from ..trl_seam import attention_implementation
from ..update.packed_attention import as_autocast, join, read_layouts, unknown_options


class SharedPrefixCache:
    """Rows that continue shared prompts, for one rollout.

    It first watches the prefill, to see whether it can serve the model at all.
    """

    def __init__(self) -> None:
        self._seen: set[nn.Module] = set()
        self._strange: set[str] = set()
        # By layer: keys and values of the prompts, (N, K, P, D) each.
        self._prompts: list[tuple[Tensor, Tensor]] | None = None
        # How many rows continue each prompt; they lie side by side.
        self._rows: list[int] = []
        # Tokens of padding on the left of each prompt.
        self._padding: list[int] = []

    @classmethod
    def for_model(cls, model: Any) -> "SharedPrefixCache | None":
        """Make a cache, or return None where it cannot serve the model.

        It serves models on a CPU with torch's own attention that hand any keyword on to it.
        """
        parameters = signature(type(model).forward).parameters.values()
        # Only such a forward hands a keyword that it does not know on to its attention.
        accepts_any = Parameter.VAR_KEYWORD in {parameter.kind for parameter in parameters}
        implementation = attention_implementation(model.config.get_text_config())
        if model.device.type != "cpu" or implementation != "sdpa" or not accepts_any:
            return None
        read_layouts("sdpa")
        return cls()

    def take(self, cache: Cache, prompt_of: Tensor, padding: Tensor, limit: int) -> bool:
        """Take the prompts out of a cache after the prefill, so that it holds what rows add.

        Args:
            prompt_of (R,): the prompt of each row, ascending.
            padding (N,): tokens of padding on the left of each prompt.
            limit: how many tokens a row may add.

        Returns:
            Whether it could; if not, the cache is as it was.
        """
        plain = all(type(layer) is DynamicLayer for layer in cache.layers)
        if not plain or self._strange or len(self._seen) != len(cache.layers):
            return False
        self._prompts = [(layer.keys, layer.values) for layer in cache.layers]
        self._rows = torch.bincount(prompt_of, minlength=len(padding)).tolist()
        self._padding = padding.tolist()
        cache.layers = [_Added(limit) for _ in cache.layers]
        return True

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only, ascending, as `Cache.reorder_cache` does."""
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
        """Compute attention in the place of a model's attention function.

        `key` and `value` are what rows have added, (R, K, t, D).

        Raises:
            NotGroupableError: while decoding, the model has masks that hide more than padding.
        """
        if self._prompts is None:
            self._seen.add(module)
            for name in unknown_options(options):
                # A dropout of 0 is passed on in evaluation, and changes nothing.
                is_zero = not isinstance(options[name], Tensor) and options[name] == 0
                if name != "scaling" and not is_zero:
                    self._strange.add(name)
            return original(module, query, key, value, mask, **options)
        # Decoding gives a mask of one cell: more is of the model's own making.
        if mask is not None and mask.numel() > 1:
            raise NotGroupableError("it weighs what tokens see by masks of its own")
        query, key, value = as_autocast(query, key, value)
        scaling = options.get("scaling")
        # (R, H, 1, D) and its normaliser, (R, H, 1)
        added = cpu_attention(query, key, value, scaling, is_causal=False)
        keys, values = self._prompts[module.layer_idx]
        if keys.dtype != query.dtype or values.dtype != query.dtype:
            # Under autocast the cache may hold another precision than attention computes in.
            keys, values = keys.to(query.dtype), values.to(query.dtype)
            self._prompts[module.layer_idx] = (keys, values)
        outputs = []
        normalisers = []
        end = 0
        for index, (rows, padding) in enumerate(zip(self._rows, self._padding, strict=True)):
            start = end
            end += rows
            if rows == 0:
                continue
            # The rows of a prompt become its queries: (1, H, rows, D). Its states are read once.
            output, normaliser = cpu_attention(
                query[start:end].transpose(0, 2),
                keys[index : index + 1, :, padding:],
                values[index : index + 1, :, padding:],
                scaling,
                is_causal=False,
            )
            outputs.append(output.transpose(0, 2))
            normalisers.append(normaliser.transpose(0, 2))
        output, _ = join((torch.cat(outputs), torch.cat(normalisers)), added)
        return output.to(query.dtype).transpose(1, 2), None


class _Added(DynamicLayer):
    """The states that rows add, in room set aside.

    transformers 5.23 copies everything at each token.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit
        self._length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype = key_states.dtype
        self.device = key_states.device
        self.is_initialized = True
        room = (*key_states.shape[:2], self._limit)
        self._keys = key_states.new_empty(*room, key_states.shape[3])
        self._values = value_states.new_empty(*room, value_states.shape[3])

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self._length
        self._length = start + key_states.shape[2]
        self._keys[:, :, start : self._length] = key_states
        self._values[:, :, start : self._length] = value_states
        return self._keys[:, :, : self._length], self._values[:, :, : self._length]

    def get_seq_length(self) -> int:
        return self._length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        if self.is_initialized:
            self._keys = self._selected(self._keys, beam_idx)
            self._values = self._selected(self._values, beam_idx)

    def _selected(self, states: Tensor, indices: Tensor) -> Tensor:
        # Memory that is not written costs nothing yet, so the room for later tokens stays free.
        room = states.new_empty(len(indices), *states.shape[1:])
        room[:, :, : self._length] = states[indices, :, : self._length]
        return room
