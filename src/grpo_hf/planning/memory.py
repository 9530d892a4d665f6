"""The memory of a run on one device, phase by phase.

What a phase needs is given back before the next one, so the peak of a run is the largest phase, and
not the sum.

Shapes: as in terms.py.
"""

from .activations import forward_bytes, head_terms, passing_bytes, saved_terms
from .run_facts import RunFacts
from .terms import GIB, Phase, Term

# vLLM needs room for activations, and for the states of some requests, beside its weights.
_VLLM_ROOM = 2 * GIB
_VLLM_REQUESTS = 8


def phases_of(run: RunFacts) -> list[Phase]:
    """Return the phases of a step: rollout, scoring, update, save."""
    always = resident_terms(run)
    trains = training_terms(run)
    phases = [Phase("rollout", (*always, *trains, *rollout_terms(run)))]
    awake = _without_sleeping(run, always)
    if run.has_kl or run.scores_old:
        phases.append(Phase("scoring", (*awake, *trains, *scoring_terms(run))))
    phases.append(Phase("update", (*awake, *trains, *update_terms(run))))
    phases.append(Phase("save", (*awake, *trains, *save_terms(run))))
    return phases


def peak_of(run: RunFacts) -> Phase:
    """Return the phase that needs most."""
    return max(phases_of(run), key=lambda phase: phase.size)


def resident_terms(run: RunFacts) -> list[Term]:
    """Return what is there all the time."""
    terms = [Term("weights", "the base", run.base_bytes // run.weight_shards)]
    if run.uses_adapter:
        size = run.shape.trained * run.precision.adapter
        terms.append(Term("adapter", "A (r, in) and B (out, r)", size // run.weight_shards))
        if run.reference_copy == "adapter":
            terms.append(Term("adapter", "its frozen copy, the reference", size))
    elif run.reference_copy == "model":
        terms.append(Term("weights", "a copy of the model, the reference", run.base_bytes))
    if run.engine.kind == "colocate":
        # Without a device in mind, what it cannot do without.
        share = round(run.engine.share * run.capacity) or least_of_vllm(run)
        terms.append(Term("vLLM", "its share of the device: weights, keys and values", share))
    if run.has_critic:
        # Weights, gradients and two averages, in float32.
        terms.append(Term("critic", "an adapter like the policy's, and AdamW's", 16 * _own(run)))
    if run.reward_bytes:
        terms.append(Term("reward model", "its weights", run.reward_bytes))
    return terms


def least_of_vllm(run: RunFacts) -> int:
    """Return what a colocated vLLM needs: the base, and room for some requests."""
    g = run.geometry
    states = 2 * run.shape.total("keys") * run.precision.products * (g.prompt + g.completion)
    return run.base_bytes + states * min(_VLLM_REQUESTS, g.rollout_rows) + _VLLM_ROOM


def _own(run: RunFacts) -> int:
    """Return the weights of an adapter."""
    return run.shape.trained if run.uses_adapter else 0


def _without_sleeping(run: RunFacts, terms: list[Term]) -> list[Term]:
    return [term for term in terms if term.group != "vLLM" or not run.engine.sleeps]


def training_terms(run: RunFacts) -> list[Term]:
    """Return what the optimizer keeps from its first step on."""
    size = run.shape.trained * run.optimizer_bytes // run.optimizer_shards
    return [Term("optimizer", "two averages for each weight that trains", size)]


def gradient_terms(run: RunFacts) -> list[Term]:
    """Return the gradients, which are there from the first backward of a step to its end."""
    size = run.shape.trained * run.precision.adapter
    terms = [Term("gradients", "one for each weight that trains", size // run.optimizer_shards)]
    if run.geometry.gpus > 1 and run.strategy == "ddp":
        terms.append(Term("gradients", "buckets in which DDP sends them", size))
    return terms


def gathered_terms(run: RunFacts, *, all_layers: bool = False) -> list[Term]:
    """Return weights of other GPUs that are here while they are used."""
    if run.weight_shards == 1:
        return []
    if all_layers:
        return [Term("gathered", "all weights, whole", run.base_bytes)]
    outside = run.bytes_of(run.shape.outside, 0)
    return [
        Term("gathered", "two layers, whole: one at work, one on its way", 2 * run.layer_bytes),
        Term("gathered", "embeddings and head, whole (V, D)", outside),
    ]


def update_terms(run: RunFacts) -> list[Term]:
    """Return what loss and backward of a micro-batch take."""
    g = run.geometry
    tokens = g.row_tokens(g.batch)
    saved = saved_terms(run, tokens)
    in_layers = passing_bytes(run, tokens)
    head = head_terms(run, g.batch, backward=True)
    terms = [*gradient_terms(run), *gathered_terms(run)]
    rotary = 2 * tokens * run.shape.head_dim * run.precision.stream
    terms.append(Term("activations", "cosines and sines of positions (T, d)", rotary))
    terms += _mask_terms(run, g.batch)
    # The head is done when the backward reaches the layers; with checkpointing no layer is whole
    # while the head works.
    if run.checkpointing:
        layer_inputs, *again = saved
        terms.append(layer_inputs)
        size_again = sum(term.size for term in again) + in_layers
        if sum(term.size for term in head) > size_again:
            return [*terms, *head]
        return [*terms, *again, _passing(in_layers)]
    terms += saved
    if sum(term.size for term in head) > in_layers:
        return [*terms, *head]
    return [*terms, _passing(in_layers)]


def _passing(size: int) -> Term:
    return Term("activations", "gradients in a feed-forward part (T, I)", size)


def _mask_terms(run: RunFacts, rows: int) -> list[Term]:
    """Return the mask of TRL's block: each token of a row by each."""
    if run.geometry.packed:
        return []
    length = run.geometry.prompt + run.geometry.completion
    return [Term("activations", "the mask of padded rows (B, 1, P+C, P+C)", rows * length**2)]


def scoring_terms(run: RunFacts) -> list[Term]:
    """Return what a forward without gradients takes: the reference's, or the old policy's."""
    g = run.geometry
    rows = g.scoring_rows
    tokens = g.row_tokens(rows)
    passing = Term("activations", "one layer in passing (T, I), (T, D)", forward_bytes(run, tokens))
    head = head_terms(run, rows, backward=False)
    terms = [*gathered_terms(run), *_mask_terms(run, rows)]
    if sum(term.size for term in head) > passing.size:
        return [*terms, *head]
    return [*terms, passing]


def rollout_terms(run: RunFacts) -> list[Term]:
    """Return what sampling takes in this process: states, logits, merged weights."""
    if run.engine.kind != "generate":
        return []
    g = run.geometry
    shape = run.shape
    rows, prompts = g.rollout_rows, g.rollout_prompts
    # Keys and values of a token in all layers; a cache has the type of the products.
    states = 2 * shape.total("keys") * run.precision.products
    sharded = run.weight_shards > 1
    grouped = run.grouped and not sharded
    if grouped and run.device == "cpu":
        tokens = prompts * g.prompt + rows * g.completion
        source = "keys and values (N, K, P, d) once, (R, K, C, d) beside, 2 L times"
    else:
        tokens = rows * (g.prompt + g.completion)
        source = "keys and values (R, K, P+C, d), 2 L times"
    terms = gathered_terms(run, all_layers=run.strategy == "zero3")
    terms.append(Term("rollout states", source, tokens * states))
    if not (grouped and run.device == "cpu"):
        # A cache grows by a copy of a layer's states at each token.
        copy = tokens * states // shape.depth
        terms.append(Term("rollout states", "a layer's states while they grow", copy))
    if grouped:
        terms.append(merged_term(run))
    # The model's logits; two copies in float32, their shares, and those by blocks.
    each = run.precision.products + (16 if grouped else 12)
    logits = rows * shape.vocabulary * each
    terms.append(Term("logits", "logits of the next token and their shares (R, V)", logits))
    return terms


def merged_term(run: RunFacts) -> Term:
    """Return the copies of matrices with the adapter in them, from which rollouts compute.

    They are left out where they would take more than half of what is free
    (rollout/merged_weights.py).
    """
    shape = run.shape
    size = 0
    # Where it is on experts, a rollout computes from the adapter as it is.
    folds = run.uses_adapter and not shape.total("wrapped")
    if folds and run.precision.quantized is None:
        size = shape.total("adapted") * run.precision.weights
        if run.device == "cpu" and run.precision.weights == 4:
            # Arranged for a CPU: all matrices, and the head.
            size = (shape.total("matrices") + shape.head) * run.precision.weights
    if run.capacity:
        others = sum(term.size for term in [*resident_terms(run), *training_terms(run)])
        if size > (run.capacity - others) / 2:
            return Term("merged weights", "left out: less than half of what is free", 0)
    return Term("merged weights", "matrices with the adapter in them", size)


def save_terms(run: RunFacts) -> list[Term]:
    """Return what a checkpoint takes while it is written."""
    if not run.uses_adapter:
        return []
    size = run.shape.trained * run.precision.adapter
    return [Term("adapter", "a copy on its way to the disk", size)]
