"""What a forward keeps for its backward, layer by layer, and what it needs in passing.

The terms are those of a decoder layer of transformers 5.23 (norm, attention, norm, feed-forward)
with LoRA of PEFT 0.21 or this library's own layers. Each says which tensors it counts.

Shapes: as in terms.py.
"""

from .model_shape import LayerShape
from .run_facts import RunFacts
from .terms import Term

# update/cpu_lm_head.py computes the logits of so many tokens at a time.
_CPU_TILE = 128
# TRL 1.16 (kernels/chunked_logprob.py): a tile of logits is so many tokens by so many words.
_TILE_TOKENS = 4096
_TILE_WORDS = 32768
# Without Triton, TRL's backward of a tile holds 7 float32 copies of it, and one of booleans.
_TILE_COPIES = 7 * 4 + 1


def saved_terms(run: RunFacts, tokens: int) -> list[Term]:
    """Return what all layers keep for the backward of a forward over so many tokens."""
    if run.checkpointing:
        width = run.precision.stream * run.shape.width
        kept = Term(
            "activations",
            "the input of each layer (T, D), L times",
            run.shape.depth * tokens * width,
        )
        largest = max((layer for layer, _ in run.shape.layers), key=lambda x: _per_token(run, x))
        again = [
            Term("activations", f"one layer again: {source}", tokens * size)
            for source, size in _parts(run, largest)
        ]
        again += _experts(run, run.shape.largest("wrapped"))
        return [kept, *again, *_autocast_copies(run, run.shape.largest("matrices"))]
    sizes: dict[str, int] = {}
    for layer, count in run.shape.layers:
        for source, size in _parts(run, layer):
            sizes[source] = sizes.get(source, 0) + tokens * size * count
    terms = [Term("activations", f"{source}, L times", size) for source, size in sizes.items()]
    terms += _experts(run, run.shape.total("wrapped"))
    return [*terms, *_autocast_copies(run, run.shape.total("matrices"))]


def _per_token(run: RunFacts, layer: LayerShape) -> int:
    return sum(size for _, size in _parts(run, layer))


def _parts(run: RunFacts, layer: LayerShape) -> list[tuple[str, int]]:
    """Return what one layer keeps of each token, in bytes, with the tensors' names and shapes."""
    products = run.precision.products
    on_cpu = run.device == "cpu"
    # transformers' norms compute in float32: a copy of half precision, the stream itself otherwise.
    parts = [("inputs of norms in float32 (T, D)", 4 * layer.norms)]
    shared = shares_inputs(run)
    keys = 2 * layer.keys
    if not run.geometry.packed and layer.keys != layer.queries:
        # With TRL's mask, transformers repeats keys for the query heads.
        keys = 2 * layer.queries
    outputs = layer.queries
    if shared and not on_cpu and run.uses_adapter:
        # The attention's output is what the next matrix reads, and counted there.
        outputs = 0
    attention = products * (layer.queries + keys + outputs) + 4 * layer.heads
    parts.append(("queries, keys, values, output (T, H·d), (T, K·d); normalisers", attention))
    inner = 3 if layer.gated else 1
    parts.append(("gate, its activation, up (T, I)", products * inner * layer.inner))
    if shared:
        parts.append(("inputs of matrices (T, D), (T, I)", products * layer.distinct))
        if not run.uses_adapter:
            parts.append(("outputs of norms before their weight (T, D)", products * layer.norms))
    else:
        each = run.precision.adapter_products
        if run.dropout > 0:
            # A mask of booleans on a GPU; on a CPU, noise in the type of the input.
            each += _dropout_input(run) if on_cpu else 1
        parts.append(("a copy of its input for each adapted matrix", each * layer.inputs))
    if run.uses_adapter:
        inner_bytes = run.precision.adapter_products
        parts.append(("what LoRA's A returns (T, r)", inner_bytes * layer.ranks))
    return parts


def shares_inputs(run: RunFacts) -> bool:
    """Return whether matrices that read the same input keep it once."""
    if not run.uses_adapter:
        return not (run.precision.autocast and run.precision.weights == 4)
    return run.dropout == 0 and not run.precision.casts_for_adapter


def _dropout_input(run: RunFacts) -> int:
    """Return the bytes of a value that the adapter's dropout reads."""
    if run.precision.autocast and run.precision.quantized is not None:
        return run.precision.products
    return run.precision.adapter


def _experts(run: RunFacts, wrapped: int) -> list[Term]:
    """Return the weights of experts that PEFT adds their adapter to, for as long as they serve."""
    if not wrapped:
        return []
    size = wrapped * run.precision.weights
    return [Term("activations", "weights of experts with the adapter in them", size)]


def _autocast_copies(run: RunFacts, matrices: int) -> list[Term]:
    """Return the copies in half precision that autocast makes of float32 matrices, and keeps."""
    if not run.precision.autocast or run.precision.weights == 2 or run.precision.quantized:
        return []
    return [Term("activations", "half copies of the matrices by autocast", 2 * matrices)]


def passing_bytes(run: RunFacts, tokens: int) -> int:
    """Return what the backward of a layer holds beside what was kept: gradients of (T, I)."""
    inner = run.shape.largest("inner")
    gradients = 2 if run.shape.layers[0][0].gated else 1
    return tokens * inner * run.precision.products * gradients + _whole_weights(run)


def _whole_weights(run: RunFacts) -> int:
    """Return the bytes of weights that are there in full while a layer is computed.

    They are the largest quantized matrix while a product reads it, and of experts with an adapter
    what it adds to them, with the sum in a forward and with the gradient in a backward.
    """
    experts = 2 * run.shape.largest("wrapped") * run.precision.weights
    if run.precision.quantized is None:
        return experts
    return experts + run.shape.largest("matrix") * run.precision.products


def forward_bytes(run: RunFacts, tokens: int) -> int:
    """Return what a forward without gradients holds at its widest, in the feed-forward part.

    These are the activation, what it multiplies and their product, (T, I), the norm's output, the
    stream, what came into the layer and into the first one, (T, D) each, and positions, (T, d).
    """
    inner = run.shape.largest("inner")
    wide = 3 if run.shape.layers[0][0].gated else 2
    products = run.precision.products
    of_width = (products + 3 * run.precision.stream) * run.shape.width
    positions = 2 * run.precision.stream * run.shape.head_dim
    return tokens * (wide * inner * products + of_width + positions) + _whole_weights(run)


def head_terms(run: RunFacts, rows: int, *, backward: bool) -> list[Term]:
    """Return what log-probabilities of some rows' completions take, beside the hidden states."""
    width, words = run.shape.width, run.shape.vocabulary
    scored = rows * run.geometry.completion
    if run.device == "cpu" and not run.geometry.packed:
        # Without Triton, TRL's head computes the logits of prompts and padding, too.
        scored = rows * (run.geometry.prompt + run.geometry.completion)
    precision = run.precision
    if run.geometry.packed and _plain_head(run):
        tile = 4 * min(scored, _CPU_TILE) * words
        terms = [Term("logits", "a tile of logits (128, V)", tile)]
        states = 3 if backward else 2
        terms.append(
            Term("logits", "hidden states and their gradient (S, D)", states * 4 * scored * width)
        )
        return terms
    tokens = min(scored, _TILE_TOKENS)
    # The buffer is as wide for a small vocabulary.
    tile = tokens * _TILE_WORDS * precision.products
    if run.device == "cpu":
        tile += tokens * min(words, _TILE_WORDS) * (_TILE_COPIES if backward else 12)
    terms = [Term("logits", "a tile of logits (4096, 32768)", tile)]
    if precision.products == 2 and run.device == "cpu":
        terms.append(
            Term(
                "logits",
                "a part of the head in float32 (32768, D)",
                4 * min(words, _TILE_WORDS) * width,
            )
        )
    if backward:
        terms.append(
            Term("logits", "gradient of the hidden states in float32 (S, D)", 4 * scored * width)
        )
        if not run.uses_adapter:
            size = 4 * words * width
            terms.append(Term("logits", "gradient of the head in float32 (V, D)", size))
    return terms


def _plain_head(run: RunFacts) -> bool:
    """Return whether update/cpu_lm_head.py scores."""
    exact = run.precision.weights == 4 and not run.precision.autocast
    # It gives the head's weights no gradient.
    return run.device == "cpu" and exact and run.uses_adapter
