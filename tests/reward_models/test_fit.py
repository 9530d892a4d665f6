"""Training a reward model: pairs, labelled steps, and the seed."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, PeftModel
from support.reward_models import COMPLETIONS, IDS, PAIRS, PROMPTS, alone, policy_on, stirred

from grpo_hf.reward_models.model import RewardModel
from grpo_hf.reward_models.preferences import Pair, pair_loss


def test_pairs_are_learned_and_told_apart_on_held_out_ones(
    policy: PeftModel, tokenizer: Any
) -> None:
    model = RewardModel.on(policy, tokenizer)
    held_out = [Pair(f"{n} + {n} = ", f"{2 * n}", "no idea") for n in range(30, 46)]
    untrained = model.evaluate(held_out)
    losses = model.fit_pairs(PAIRS, learning_rate=3e-3, epochs=4)
    trained = model.evaluate(held_out)
    assert len(losses) == 8 and losses[-1] < losses[0] / 2
    assert trained.accuracy.value == 1 and trained.brier < untrained.brier / 2


@pytest.mark.parametrize("tokens_at_once", [1, 2048])
def test_a_step_descends_bradley_terry_with_margins_as_an_independent_loop_does(
    tokens_at_once: int, tiny_checkpoint: Path, tokenizer: Any, tmp_path: Path
) -> None:
    """One step of AdamW on PEFT's own classifier, from the same weights."""
    pairs = [
        Pair("1 + 1 = ", "2", "three", 0.0),
        Pair("How many? ", "I do not know that.", "4", 1.5),
    ]
    model = RewardModel.on(policy_on(tiny_checkpoint, lora_dropout=0.0), tokenizer)
    stirred(model)
    model.save(tmp_path / "rm")
    settings = {
        "learning_rate": 1e-3,
        "max_grad_norm": 1e9,
        "batch_size": 2,
        "tokens_at_once": tokens_at_once,
    }
    (loss,) = model.fit_pairs(pairs, **settings)
    other = AutoPeftModelForSequenceClassification.from_pretrained(
        tmp_path / "rm", num_labels=1, is_trainable=True
    )
    optimizer = torch.optim.AdamW(
        [w for w in other.parameters() if w.requires_grad], lr=1e-3, weight_decay=0.0
    )

    def score(text: str) -> torch.Tensor:
        return other(input_ids=torch.tensor([tokenizer(text).input_ids])).logits[0]

    expected = pair_loss(
        torch.cat([score(pair.prompt + pair.chosen) for pair in pairs]),
        torch.cat([score(pair.prompt + pair.rejected) for pair in pairs]),
        torch.tensor([0.0, 1.5]),
    )
    expected.backward()
    optimizer.step()
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    after = [
        alone(other.eval(), tokenizer(p + c).input_ids)
        for p, c in zip(PROMPTS, COMPLETIONS, strict=True)
    ]
    assert model.scores(PROMPTS, COMPLETIONS).tolist() == pytest.approx(after, abs=1e-3)


@pytest.mark.long
@pytest.mark.parametrize("tokens_at_once", [12, 2048])
def test_steps_descend_binary_cross_entropy_with_soft_labels(
    tokens_at_once: int, tiny_checkpoint: Path, tokenizer: Any
) -> None:
    model = RewardModel.on(policy_on(tiny_checkpoint, lora_dropout=0.0), tokenizer)
    prompts, ends, labels = (
        [[9], [9, 8], [7]],
        [[1, 3], [1], [2, 6]],
        [[1.0, 0.0], [0.25], [1.0, 0.5]],
    )
    probabilities = [values.double().sigmoid() for values in model.step_scores(prompts, IDS, ends)]
    by_hand = [
        -(y * math.log(p) + (1 - y) * math.log(1 - p))
        for row, marks in zip(probabilities, labels, strict=True)
        for p, y in zip(row.tolist(), marks, strict=True)
    ]
    losses = model.fit_steps(
        prompts,
        IDS,
        ends,
        labels,
        epochs=60,
        learning_rate=3e-3,
        batch_size=3,
        tokens_at_once=tokens_at_once,
    )
    assert losses[0] == pytest.approx(sum(by_hand) / 5, abs=1e-5)
    learned = torch.cat(model.step_scores(prompts, IDS, ends)).sigmoid()
    assert (learned - torch.tensor([1.0, 0.0, 0.25, 1.0, 0.5])).abs().max() < 0.1


@pytest.mark.long
def test_the_seed_decides_everything(tiny_checkpoint: Path, tokenizer: Any) -> None:
    def fitted(seed: int, disturb: int) -> tuple[list[float], torch.Tensor]:
        model = RewardModel.on(policy_on(tiny_checkpoint), tokenizer, seed=seed)
        torch.manual_seed(disturb)
        return model.fit_pairs(PAIRS, epochs=2, batch_size=4, seed=seed), model.scores(
            PROMPTS, COMPLETIONS
        )

    (losses, scores), again, other = fitted(0, 1), fitted(0, 2), fitted(1, 1)
    assert losses == again[0] and torch.equal(scores, again[1])
    assert losses != other[0]
