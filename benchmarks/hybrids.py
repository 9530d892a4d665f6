"""Compare update and rollout on models that carry state along the row.

    python -m benchmarks.hybrids [--rows lfm2-update] [--repeats 5] [--threads 1] [--model PATH]

The models have the layers of LFM2 (short convolutions beside attention), Qwen3.5 (the gated delta
rule) and Bamba (Mamba 2), with random weights: the time does not depend on them. `--model` gives
the tokenizer. The checks are those of update.py and rollout.py.
"""

import tempfile
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo_hf.runs.program import quiet

from . import rollout, update
from .common import OURS, TRL, Row, options, prepare, report
from .sides import make_trainer
from .update import Case

LAYERS = 8
SIZES = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 2048,
}
# Every fourth layer attends, as in the published models.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "lfm2": ("Lfm2Config", {"layer_types": ["conv", "conv", "full_attention", "conv"] * 2}),
    "qwen3_5": (
        "Qwen3_5TextConfig",
        {
            "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 2,
            "linear_num_key_heads": 8,
            "linear_num_value_heads": 8,
            "linear_key_head_dim": 64,
            "linear_value_head_dim": 64,
        },
    ),
    "bamba": (
        "BambaConfig",
        {
            "attn_layer_indices": [3, 7],
            "mamba_n_heads": 16,
            "mamba_d_head": 64,
            "mamba_n_groups": 1,
            "mamba_d_state": 64,
            "mamba_chunk_size": 64,
        },
    ),
}
UPDATES = [
    Case("p128", "P=128, C≤128, G=8, 2 groups", 1.5, groups=2),
    Case("p512", "P=512, C≤128, G=8", 2.5, prompt=512),
]
ROLLOUT = Case("p256", "P=256, C=32, G=8", prompt=256, longest=32, equal=True)


def names() -> list[str]:
    """Return the names of all rows."""
    rows = []
    for name in MODELS:
        rows += [f"{name}-update", f"{name}-rollout"]
    return rows


def save_model(name: str, tokenizer_of: str) -> str:
    """Write a checkpoint of random weights, and return its folder."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    config, settings = MODELS[name]
    tokens = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        getattr(transformers, config)(**SIZES, **tokens, **settings)
    )
    folder = tempfile.mkdtemp(prefix=f"benchmark-{name}-")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def measure(name: str, arguments: Namespace) -> list[Row]:
    """Return the rows of one model that the flags ask for."""
    folder = save_model(name, arguments.model)
    rows = []
    if f"{name}-update" in arguments.rows:
        trainers = update.trainers_for(folder, peer=False)
        for case in UPDATES:
            row = update.compare(case, trainers, arguments.repeats)
            update.print_checks(row)
            rows.append(row)
    if f"{name}-rollout" in arguments.rows:
        trainers = {}
        for side in (TRL, OURS):
            trainers[side] = make_trainer(side, folder, max_completion_length=ROLLOUT.longest)
        rows.append(rollout.compare(ROLLOUT, trainers, arguments.repeats))
    return [row | {"name": f"{name} {row['name']}"} for row in rows]


def main(given: Sequence[str] | None = None) -> None:
    """Run the benchmark that the flags describe."""
    arguments = options(__doc__, names()).parse_args(given)
    quiet()
    prepare(arguments)
    rows = []
    for name in MODELS:
        rows += measure(name, arguments)
    report("hybrids", rows, arguments)


if __name__ == "__main__":
    main()
