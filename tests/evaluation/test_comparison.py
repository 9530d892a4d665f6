"""Tests of base against adapter on the same prompts."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.questions import CHATS, graded, one_by_one, varied_model
from transformers import LlamaForCausalLM, TrainerState, set_seed

from grpo_hf.demo.tiny_model import tiny_tokenizer
from grpo_hf.evaluation.comparison import answer_greedily, compare_answers, write_answers
from grpo_hf.scoring.registry import load_reward
from grpo_hf.scoring.scored_reward import ScoredReward


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer) -> LlamaForCausalLM:
    return varied_model(tokenizer)


@pytest.mark.long
def test_base_and_adapter_are_compared_on_their_own_answers(model, tokenizer, tmp_path: Path):
    base = LlamaForCausalLM(model.config).eval()
    base.load_state_dict(model.state_dict())
    expected = {"base": one_by_one(base, tokenizer, CHATS, 6)}
    policy = get_peft_model(
        base, LoraConfig(r=2, target_modules="all-linear", init_lora_weights="gaussian")
    )
    set_seed(2)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    policy.eval()
    expected["adapter"] = one_by_one(policy, tokenizer, CHATS, 6)
    assert expected["adapter"] != expected["base"]

    # The base is right on the first two questions, the adapter on the last three.
    golds = [*expected["base"][:2], "none", "half", *expected["adapter"][4:]]
    rows = [{"prompt": prompt, "answer": gold} for prompt, gold in zip(CHATS, golds, strict=True)]
    told = []
    answers = {}
    for side in ("adapter", "base"):
        answers[side] = answer_greedily(
            policy,
            tokenizer,
            rows,
            ScoredReward(load_reward(graded)),
            side=side,
            decoding={"max_new_tokens": 6, "batch_size": 3},
            trainer_state=TrainerState(global_step=1),
            progress=lambda *news: told.append(news),
        )
    found = compare_answers(**answers)
    assert found.cut.total == 7 and found.cut.limit == 6
    write_answers(tmp_path / "evaluation.jsonl", CHATS, answers)
    # Seven prompts, three at a time.
    for side in ("adapter", "base"):
        counts = [told.pop(0) for _ in range(6)]
        # Said before the first batch: else the other side would seem to be at work.
        assert counts[:4] == [(side, "greedy", count) for count in (0, 3, 3, 1)]
        assert counts[4:] == [(side, "judging", 0), (side, "judging", 7)]

    lines = (tmp_path / "evaluation.jsonl").read_text().splitlines()
    records = list(map(json.loads, lines))
    for name, answers in expected.items():
        assert [record[name]["answer"] for record in records] == answers
        right = [answer == gold for answer, gold in zip(answers, golds, strict=True)]
        assert [record[name]["right"] for record in records] == right
        assert getattr(found.cut, name) == sum(record[name]["cut"] for record in records) > 0
        assert getattr(found, name).right == sum(right)
        earned = [record[name]["reward"] for record in records]
        assert [value == 1.0 for value in earned] == right
        assert getattr(found.part, name) == pytest.approx(sum(earned) / 7)
    assert found.difference == pytest.approx((found.adapter.right - found.base.right) / 7)
    assert [record["prompt"] for record in records] == CHATS
    assert one_by_one(policy, tokenizer, CHATS[:1], 6) == expected["adapter"][:1], (
        "the adapter is on again"
    )
