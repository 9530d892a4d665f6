"""The shapes of a model and its adapter, from a configuration alone: `ModelShape`.

The model is built on torch's `meta` device and given its adapter by PEFT, so parameters are counted
and not estimated. Layers that are built alike are examined once.

Shapes: D hidden size, H query heads, K key and value heads, d values per head, I inner width of the
feed-forward part for one token, r rank of the adapter, V vocabulary.
"""

from collections import Counter
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from peft import PeftConfig, get_peft_model
from peft.tuners.lora import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from ..errors import NotPlannableError

# Families whose layers keep for their backward what a Llama's do.
_ALIKE = {"llama", "mistral", "ministral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2"}
_ALIKE |= {"gemma3_text", "granite", "olmo2", "olmo3", "phi3"}


@dataclass(frozen=True)
class LayerShape:
    """Widths of one decoder layer: values per token, or parameters.

    Args:
        inputs: the widths that the adapted matrices read, in all.
        distinct: the same, where an input that several matrices read counts once.
        ranks: of the adapter, in all.
        inner: I.
        gated: whether the feed-forward part multiplies two of its matrices' outputs.
        queries: H·d.
        keys: K·d.
        heads: H.
        norms: the widths that normalisations read, in all.
        parameters: of the base.
        matrix: parameters of the largest matrix.
        matrices: parameters of all matrices.
        adapted: parameters of the matrices with an adapter.
        wrapped: parameters of experts with an adapter, which PEFT 0.21 adds to them in a copy.
        trained: parameters that train.
    """

    inputs: int
    distinct: int
    ranks: int
    inner: int
    gated: bool
    queries: int
    keys: int
    heads: int
    norms: int
    parameters: int
    matrix: int
    matrices: int
    adapted: int
    wrapped: int
    trained: int


@dataclass(frozen=True)
class ModelShape:
    """A model's sizes.

    Args:
        layers: each kind of decoder layer with the number of them.
        width: D.
        head_dim: d.
        vocabulary: V.
        parameters: of the base.
        outside: those of them outside of the decoder layers: embeddings, head, last norm.
        head: parameters of the head, which may be those of the embeddings.
        trained: parameters that train: of the adapter, or all.
        notes: what is estimated more roughly than the rest.
    """

    layers: tuple[tuple[LayerShape, int], ...]
    width: int
    head_dim: int
    vocabulary: int
    parameters: int
    outside: int
    head: int
    trained: int
    notes: tuple[str, ...] = ()

    @property
    def depth(self) -> int:
        """The number of decoder layers."""
        return sum(count for _, count in self.layers)

    def total(self, name: str) -> int:
        """Return the sum of one width over all decoder layers."""
        return sum(getattr(layer, name) * count for layer, count in self.layers)

    def largest(self, name: str) -> int:
        """Return the largest width of one kind among the decoder layers."""
        return max(getattr(layer, name) for layer, _ in self.layers)


def shape_of(
    config: Any, adapter: PeftConfig | None = None, *, trust_remote_code: bool = False
) -> ModelShape:
    """Return the sizes of the model that a configuration describes.

    Args:
        config: of transformers.
        adapter: the configuration of an adapter; without one, every weight trains.

    Raises:
        NotPlannableError: the configuration does not describe a decoder of known parts.
    """
    try:
        # Building a model writes into its configuration.
        return _shape_of(deepcopy(config), adapter, trust_remote_code)
    except NotPlannableError:
        raise
    # transformers and PEFT raise all kinds of errors about models that they cannot build.
    except Exception as error:
        kind = type(config).__name__
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise NotPlannableError(f"a model of {kind} cannot be built ({reason})") from error


def _shape_of(config: Any, adapter: PeftConfig | None, trust_remote_code: bool) -> ModelShape:
    text = config.get_text_config()
    sizes = _Sizes.of(text)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        parameters = _count(model)
        head = _head_parameters(model)
        kinds = _keep_one_of_each_kind(model, sizes.depth)
        outside = _count(model) - sum(_count(layer) for layer, _ in kinds)
        # PEFT writes the names of the matrices that it found into the configuration.
        adapted = model if adapter is None else get_peft_model(model, deepcopy(adapter))
    layers = []
    for layer, count in kinds:
        layers.append((_layer_shape(layer, sizes), count))
    trained = _count(adapted, trained=True)
    for shape, count in layers:
        trained += shape.trained * (count - 1)
    return ModelShape(
        layers=tuple(layers),
        width=sizes.width,
        head_dim=sizes.head_dim,
        vocabulary=text.vocab_size,
        parameters=parameters,
        outside=outside,
        head=head,
        trained=trained,
        notes=_notes(text),
    )


@dataclass(frozen=True)
class _Sizes:
    """Numbers of a configuration; architectures call most of them alike."""

    depth: int
    width: int
    heads: int
    key_heads: int
    head_dim: int
    inner: int

    @classmethod
    def of(cls, text: Any) -> "_Sizes":
        """Read them.

        Raises:
            NotPlannableError: one of them is missing.
        """
        found: dict[str, int] = {}
        for name in ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"):
            number = getattr(text, name, None)
            if not isinstance(number, int) or number < 1:
                raise NotPlannableError(
                    f"the configuration of {getattr(text, 'model_type', 'this model')!r} has no "
                    f"{name}, and a plan is of decoder layers with attention. What such a model "
                    "takes can be measured: train it for two steps (--max_steps 2)"
                )
            found[name] = number
        heads = found["num_attention_heads"]
        width = found["hidden_size"]
        key_heads = getattr(text, "num_key_value_heads", None)
        return cls(
            depth=found["num_hidden_layers"],
            width=width,
            heads=heads,
            key_heads=key_heads if isinstance(key_heads, int) else heads,
            head_dim=getattr(text, "head_dim", None) or width // heads,
            inner=_inner_width(text, width),
        )


def _inner_width(text: Any, width: int) -> int:
    """Return the inner width of the feed-forward part for one token.

    A token of a mixture of experts passes through some of them, and one that all tokens share.
    """
    for name in ("intermediate_size", "ffn_dim", "n_inner"):
        inner = getattr(text, name, None)
        if isinstance(inner, list | tuple) and inner:
            inner = max(inner)  # one for each layer, as in Gemma 3n
        if isinstance(inner, int):
            break
    else:
        inner = 4 * width  # GPT-2's, where n_inner is None
    active = getattr(text, "num_experts_per_tok", None)
    if not isinstance(active, int):
        return inner
    expert = getattr(text, "moe_intermediate_size", None) or inner
    return active * expert + (getattr(text, "shared_expert_intermediate_size", None) or 0)


def _notes(text: Any) -> tuple[str, ...]:
    """Return what is not counted as it is."""
    notes = []
    if isinstance(getattr(text, "num_experts_per_tok", None), int):
        notes.append("the activations of experts are estimated from the width of the active ones")
    if isinstance(getattr(text, "kv_lora_rank", None), int):
        notes.append("queries, keys and values are counted without their latent form")
    kinds = set(getattr(text, "layer_types", None) or [])
    others = sorted(kinds - {"full_attention", "sliding_attention"})
    if others:
        notes.append(f"layers of the kind {', '.join(others)} are counted as attention")
    if not notes and text.model_type not in _ALIKE:
        notes.append(
            f"a layer of {text.model_type!r} is counted as one of a Llama, with its own widths"
        )
    return tuple(notes)


def _keep_one_of_each_kind(model: nn.Module, depth: int) -> list[tuple[nn.Module, int]]:
    """Leave one decoder layer of each kind in a model, and return them with their numbers.

    PEFT takes seconds to put an adapter on 80 layers.

    Raises:
        NotPlannableError: the model has no list of that many layers.
    """
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == depth:
                kinds: Counter[Any] = Counter(_kind(layer) for layer in child)
                kept: dict[Any, nn.Module] = {}
                for layer in child:
                    kept.setdefault(_kind(layer), layer)
                setattr(module, name, nn.ModuleList(kept.values()))
                return [(layer, kinds[kind]) for kind, layer in kept.items()]
    raise NotPlannableError(f"{type(model).__name__} has no list of {depth} layers")


def _kind(layer: nn.Module) -> tuple[Any, ...]:
    """Return what is equal for layers that are built alike."""
    parts = []
    for name, weight in layer.named_parameters():
        parts.append((name, tuple(weight.shape)))
    return tuple(parts)


def _count(model: nn.Module, *, trained: bool = False) -> int:
    """Return the number of parameters, each once however often it is used."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained)


def _head_parameters(model: Any) -> int:
    head = model.get_output_embeddings()
    return 0 if head is None else _count(head)


def _layer_shape(layer: nn.Module, sizes: _Sizes) -> LayerShape:
    """Return the widths of a layer, which may have an adapter by now."""
    adapted = [module for module in layer.modules() if isinstance(module, BaseTunerLayer)]
    inside = set()
    for module in adapted:
        inside.update(set(module.modules()) - {module})
    matrices: list[_Matrix] = []
    for name, module in layer.named_modules():
        if module in inside or isinstance(module, ParamWrapper):
            continue
        if hasattr(module, "in_features"):
            sides = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            # GPT-2's, until PEFT has wrapped them.
            sides = (module.nx, module.nf)
        else:
            continue
        matrices.append(_Matrix(name, *sides, _rank(module), isinstance(module, BaseTunerLayer)))
    # Without an adapter every matrix trains, and keeps its input.
    reading = [matrix for matrix in matrices if not adapted or matrix.is_adapted]
    weights = [matrix.size for matrix in matrices]
    trained = _count(layer, trained=True)
    of_base = _count(layer) - (trained if adapted else 0)
    wide = [matrix for matrix in matrices if matrix.outputs == sizes.inner]
    fused = any(matrix.outputs == 2 * sizes.inner for matrix in matrices)
    return LayerShape(
        inputs=sum(matrix.inputs for matrix in reading),
        distinct=sum(_distinct_inputs(reading)),
        ranks=sum(matrix.rank for matrix in reading),
        inner=sizes.inner,
        gated=len(wide) > 1 or fused or not wide,
        queries=sizes.heads * sizes.head_dim,
        keys=sizes.key_heads * sizes.head_dim,
        heads=sizes.heads,
        norms=_norm_widths(layer, sizes),
        parameters=of_base,
        matrix=max(weights, default=of_base),
        matrices=sum(weights),
        adapted=sum(matrix.size for matrix in matrices if matrix.is_adapted),
        wrapped=sum(_wrapped(module) for module in adapted),
        trained=trained,
    )


class _Matrix(NamedTuple):
    """One matrix of a layer, with the rank of its adapter."""

    name: str
    inputs: int
    outputs: int
    rank: int
    is_adapted: bool

    @property
    def size(self) -> int:
        return self.inputs * self.outputs


def _distinct_inputs(matrices: list[_Matrix]) -> list[int]:
    """Return the widths of inputs, once where matrices side by side read the same.

    Those are the queries', keys' and values', and a gate and what it gates. What leads back to the
    hidden size reads an input of its own.
    """
    seen = set()
    widths = []
    for matrix in matrices:
        name = matrix.name
        part = name.rpartition(".")[0]
        last = name.endswith(("o_proj", "down_proj", "out_proj", "c_proj", "dense", "fc2", "wo"))
        key = name if last else (part, matrix.inputs)
        if key not in seen:
            seen.add(key)
            widths.append(matrix.inputs)
    return widths


def _wrapped(module: Any) -> int:
    """Return the parameters of experts, which are one tensor."""
    if not isinstance(module, ParamWrapper):
        return 0
    return module.num_experts * module.in_features * module.out_features


def _rank(module: Any) -> int:
    ranks = getattr(module, "r", None)
    if isinstance(ranks, dict):
        return sum(rank for rank in ranks.values() if isinstance(rank, int))
    return 0


def _norm_widths(layer: nn.Module, sizes: _Sizes) -> int:
    """Return the widths of what normalisations read; those of heads read all heads."""
    widths = 0
    for name, module in layer.named_modules():
        if "norm" not in type(module).__name__.lower():
            continue
        own = sum(weight.shape[0] for weight in list(module.parameters())[:1])
        if own == sizes.head_dim != sizes.width:
            own *= sizes.key_heads if "k_" in name else sizes.heads
        widths += own
    return widths
