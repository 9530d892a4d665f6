"""Rollouts and completions to show the credit of."""

from typing import Any

import torch

from grpo_hf.reporting.token_credit import Completion

MULTILINGUAL = "größe 日本語 👩‍👩‍👧 naïve — «ok»\n\t12 + 3 = 15 !"
HOSTILE = [
    '<script>alert("1")</script>',
    "\n\n",
    "  ",
    "",
    "</div>",
    "&amp;",
    " x",
    "</style><!--",
    "$body",
    "<|end|>",
]


def completion(tokens: list[str], advantages: list[float]) -> Completion:
    return Completion(tokens, advantages, special=[len(tokens) - 1], reward=0.5)


def batch_of(tokenizer: Any, texts: list[str], advantages: Any) -> dict[str, Any]:
    """Return a generation batch of these completions of two prompts, padded as by TRL."""
    rows = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
    width = max(map(len, rows)) + 2
    prompts = [
        tokenizer("1 + 1 =" if i < len(rows) // 2 else "2 + 2 =")["input_ids"]
        for i in range(len(rows))
    ]
    pad = tokenizer.pad_token_id
    return {
        "prompt_ids": torch.tensor([[pad, *ids] for ids in prompts]),
        "prompt_mask": torch.tensor([[0] + [1] * len(ids) for ids in prompts]),
        "completion_ids": torch.tensor([ids + [pad] * (width - len(ids)) for ids in rows]),
        "completion_mask": torch.tensor(
            [[1] * len(ids) + [0] * (width - len(ids)) for ids in rows]
        ),
        "advantages": torch.as_tensor(advantages),
    }
