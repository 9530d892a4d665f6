"""The reward model on the policy's base: PEFT reads equal scores, the policy does not change."""

import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from support.reward_models import (
    ANSWERS,
    CHAT,
    COMPLETIONS,
    IDS,
    PAIRS,
    PROMPTS,
    alone,
    classifier,
    policy_on,
    stirred,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo_hf import StepRewards, reward_settings
from grpo_hf.algorithm.advantages import process_advantages
from grpo_hf.errors import DataError, ModelError, RewardSpecError
from grpo_hf.models import adapters as roles
from grpo_hf.reward_models.model import RewardModel
from grpo_hf.reward_models.preferences import Pair
from grpo_hf.rewards.reward_model import reward_model as reward_by_name
from grpo_hf.scoring.steps import step_end_tokens


def test_an_untrained_one_is_its_head_on_the_base(policy: PeftModel, tokenizer: Any) -> None:
    made = RewardModel.on(policy, tokenizer)
    with torch.no_grad(), policy.disable_adapter():
        states = policy.get_base_model().model(torch.tensor([IDS[0]])).last_hidden_state
    torch.testing.assert_close(
        made.token_scores(IDS)[0], (states @ made.head.weight.T)[0, :, 0], atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(
    ("of_base", "of_tokenizer"), [(None, "eos"), ("eos", "pad"), ("pad", "eos"), (None, None)]
)
def test_a_template_that_ends_with_the_padding_token(
    tiny_checkpoint: Path,
    make_trainer: Callable[..., Any],
    tmp_path: Path,
    of_base: Any,
    of_tokenizer: Any,
) -> None:
    """Scores are read by the tokenizer's padding token, even if the base has another one.

    Making a trainer changes the base's padding token, and no score.
    """
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint, padding_side="left")
    ids = {None: None, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    tokens = {None: None, "eos": tokenizer.eos_token, "pad": tokenizer.pad_token}
    assert ids["eos"] != ids["pad"]
    base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    base.config.pad_token_id = base.generation_config.pad_token_id = ids[of_base]
    base.save_pretrained(tmp_path / "base")
    tokenizer.pad_token = tokens[of_tokenizer]
    model = RewardModel.on(policy_on(tmp_path / "base"), tokenizer)
    stirred(model)
    model.save(tmp_path / "rm")
    before = model.scores(CHAT, ANSWERS).tolist()
    rows = [
        tokenizer.apply_chat_template(p + c)["input_ids"]
        for p, c in zip(CHAT, ANSWERS, strict=True)
    ]
    assert all(row[-1] == tokenizer.eos_token_id for row in rows)
    loaded = classifier(tmp_path / "rm")
    loaded.config.pad_token_id = AutoTokenizer.from_pretrained(tmp_path / "rm").pad_token_id
    assert before == pytest.approx([alone(loaded, row) for row in rows], abs=1e-5)
    assert reward_by_name(ANSWERS, CHAT, model=str(tmp_path / "rm")) == pytest.approx(
        before, abs=1e-5
    )
    make_trainer(model=model.model, processing_class=tokenizer)
    again = RewardModel(model.model, tokenizer, model.head, "reward", 2048)
    assert again.scores(CHAT, ANSWERS).tolist() == pytest.approx(before, abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_neither_padding_nor_neighbours_change_a_score(model: RewardModel, batch_size: int) -> None:
    together = model.scores(PROMPTS, COMPLETIONS, batch_size=batch_size)
    alone_each = [model.scores([p], [c]).item() for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert together.tolist() == pytest.approx(alone_each, abs=1e-5)


def test_a_step_is_read_where_it_ends(model: RewardModel) -> None:
    prompts, ends = [[40, 41], [42], [43, 44, 45]], [[1, 3], [0, 1], [6, 2]]
    found = model.step_scores(prompts, IDS, ends)
    for values, prompt, completion, where in zip(found, prompts, IDS, ends, strict=True):
        cut = [model.token_scores([prompt + completion[: end + 1]])[0][-1].item() for end in where]
        assert values.tolist() == pytest.approx(cut, abs=1e-5)  # what comes later cannot matter


def test_a_long_text_loses_its_beginning_and_an_empty_one_has_no_score(
    policy: PeftModel, tokenizer: Any
) -> None:
    model = RewardModel.on(policy, tokenizer, max_length=6)
    first, second = model.scores(
        ["word " * 50 + "6 * 7?", "other " * 70 + "6 * 7?"], [" 42", " 42"]
    )
    assert first == second
    empty, full = model.scores(["", "a"], ["", "b"])
    assert math.isnan(empty) and math.isfinite(full)


def test_what_cannot_be_read_is_refused(model: RewardModel) -> None:
    with pytest.raises(
        DataError, match="a prompt is list and its completion str; expected two texts"
    ):
        model.scores(CHAT, COMPLETIONS)
    with pytest.raises(DataError, match="a row has 300 tokens; the base has positions for 256"):
        model.token_scores([[1] * 300])
    with pytest.raises(DataError, match="a row has 301 tokens"):
        model.fit_steps([[1]], [[1] * 300], [[3]], [[1.0]])
    with pytest.raises(DataError, match=r"steps end at \[0, 4\] in a completion of 4 tokens"):
        model.step_scores([[1]], [IDS[0]], [[0, 4]])
    with pytest.raises(DataError, match=r"2 step ends have labels \[0.5\]"):
        model.fit_steps([[1]], [IDS[0]], [[0, 3]], [[0.5]])
    with pytest.raises(DataError, match=r"labels \[1.5\]; expected one from 0 to 1"):
        model.fit_steps([[1]], [IDS[0]], [[3]], [[1.5]])
    with pytest.raises(DataError, match="1 texts of the pairs have no token"):
        model.fit_pairs([Pair("", "a", "")])


def state_of(model: PeftModel) -> Any:
    return (
        model.active_adapter,
        [(name, module.training) for name, module in model.named_modules()],
        [
            (name, weight.requires_grad, weight.grad is None)
            for name, weight in model.named_parameters()
        ],
        {layer.active_adapters[0] for layer in model.modules() if hasattr(layer, "lora_A")},
        torch.get_rng_state().tolist(),
        (random.getstate(), np.random.get_state()[1].tolist()),
    )


def tokens_and_gradients(model: PeftModel) -> Any:
    """Return the policy's tokens and the gradient of its loss, with dropout from a fixed seed."""
    model.eval()
    written = model.generate(
        torch.tensor([IDS[2]]), max_new_tokens=8, do_sample=False, pad_token_id=0
    )
    model.train()
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    with torch.random.fork_rng():
        torch.manual_seed(11)
        ids = torch.tensor([IDS[2]])
        gradients = torch.autograd.grad(
            model(input_ids=ids, labels=ids).loss, list(weights.values())
        )
    return [written, *gradients], sorted(weights)


def disturbances(model: RewardModel, folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    def fails_inside() -> None:
        with pytest.raises(IndexError):
            model.token_scores([[10**6]])
        with pytest.raises(RuntimeError, match="stop"):
            model.fit_pairs(PAIRS, progress=stop)

    def stop(*_: Any) -> None:
        raise RuntimeError("stop")

    yield "scores", lambda: model.scores(PROMPTS, COMPLETIONS)
    yield "fit_pairs", lambda: model.fit_pairs(PAIRS, learning_rate=1e-2, seed=4)
    yield (
        "fit_steps",
        lambda: model.fit_steps([[9]] * 3, IDS, [[1], [1], [2, 6]], [[1.0], [0.0], [0.3, 0.9]]),
    )
    yield "evaluate", lambda: model.evaluate(PAIRS)
    yield "exceptions", fails_inside
    yield "save", lambda: model.save(folder / "rm")
    yield (
        "load",
        lambda: RewardModel.load(folder / "rm", model.model, model.tokenizer, adapter="second"),
    )


def test_the_policy_does_not_notice(policy: PeftModel, tokenizer: Any, tmp_path: Path) -> None:
    layers = policy.get_base_model().model.layers
    # Flags need not be PEFT's.
    layers[0].self_attn.q_proj.lora_A.default.weight.requires_grad_(False)
    layers[2].mlp.up_proj.weight.requires_grad_(True)
    before = tokens_and_gradients(policy)
    flags = {name: weight.requires_grad for name, weight in policy.named_parameters()}
    layers[1].eval()  # modes need not be alike
    model = RewardModel.on(policy, tokenizer)
    after = {name: weight.requires_grad for name, weight in policy.named_parameters()}
    assert after.items() >= flags.items() and not any(
        after[name] for name in after.keys() - flags.keys()
    )
    for what, disturb in disturbances(model, tmp_path):
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        state = state_of(policy)
        disturb()
        new = {name for name, *_ in state_of(policy)[2]} - {name for name, *_ in state[2]}
        now = state_of(policy)
        assert now[0] == state[0] and now[3:] == state[3:], what
        assert [flags_of for flags_of in now[2] if flags_of[0] not in new] == state[2], what
        assert set(state[1]) <= set(now[1]), what
    tensors, names = tokens_and_gradients(policy)
    assert names == before[1]
    assert all(torch.equal(a, b) for a, b in zip(tensors, before[0], strict=True))


def test_it_reads_through_its_own_adapter_whatever_is_active(model: RewardModel) -> None:
    expected = model.token_scores(IDS)[0]
    with model.model.disable_adapter():
        assert torch.equal(model.token_scores(IDS)[0], expected)
        disabled = [
            layer.disable_adapters for layer in model.model.modules() if hasattr(layer, "lora_A")
        ]
        assert all(disabled)
    for weight in roles.role_weights(model.model, "default").values():
        weight.data.mul_(7)
    assert torch.equal(model.token_scores(IDS)[0], expected)


def test_a_policy_that_trains_whole_modules_keeps_them_to_itself(
    tiny_checkpoint: Path, tokenizer: Any
) -> None:
    policy = policy_on(tiny_checkpoint, modules_to_save=["norm"])
    model = RewardModel.on(policy, tokenizer)
    stirred(model)
    scores = model.token_scores(IDS)[0]
    assert all("lora_" in name for name in roles.role_weights(policy, "reward"))
    own = [
        weight for name, weight in policy.named_parameters() if "modules_to_save.default" in name
    ]
    assert own and all(weight.requires_grad for weight in own)
    before = [weight.clone() for weight in own]
    model.fit_steps([[9]] * 3, IDS, [[1], [1], [6]], [[1.0], [0.0], [0.3]])
    assert all(torch.equal(a, b) and a.requires_grad for a, b in zip(own, before, strict=True))
    stirred(model)
    own[0].data.mul_(3)
    model.head.weight.data.copy_(RewardModel.on(policy, tokenizer, adapter="other").head.weight)
    assert torch.equal(model.token_scores(IDS)[0], scores)


def test_a_trainer_scores_with_the_base_that_is_in_memory(
    make_trainer: Callable[..., Any],
    tiny_checkpoint: Path,
    tokenizer: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    policy = policy_on(tiny_checkpoint, lora_dropout=0.0)
    model = RewardModel.on(policy, tokenizer)
    stirred(model)
    own = sum(weight.numel() for weight in roles.role_weights(policy, "reward").values())
    kept = {
        name: weight.clone()
        for name, weight in policy.named_parameters()
        if ".default." not in name
    }
    seen: list[Any] = []
    reward = model.as_reward()

    def spy(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
        values = reward(prompts=prompts, completions=completions, **columns)
        seen.append((prompts, completions, values))
        return values

    spy.reward_settings = reward.reward_settings
    trainer = make_trainer(model=policy, reward_funcs=[spy], beta=0.04, learning_rate=1e-2)
    trained = {
        name: weight.clone() for name, weight in policy.named_parameters() if ".default." in name
    }
    base = sum(
        weight.numel()
        for weight in AutoModelForCausalLM.from_pretrained(tiny_checkpoint).parameters()
    )
    lora = sum(weight.numel() for weight in trained.values())
    # Twice the LoRA weights: the policy's and those of `ref`.
    assert sum(weight.numel() for weight in trainer.model.parameters()) == base + 2 * lora + own
    trainer.train()  # which checks the KL at step 0, and that nothing frozen has changed
    assert not any(
        torch.equal(dict(policy.named_parameters())[name], weight)
        for name, weight in trained.items()
    )
    assert all(
        torch.equal(dict(policy.named_parameters())[name], weight) for name, weight in kept.items()
    )
    assert len(seen) == 3  # tried on the data, and two steps
    assert not [record for record in caplog.records if "main thread" in record.getMessage()]
    for prompts, completions, values in seen[1:]:  # whatever was active then
        assert model.scores(prompts, completions).tolist() == pytest.approx(values, abs=1e-5)
        assert len(set(values)) > 2
    assert trainer.state.log_history[0]["rewards/spy/mean"] == pytest.approx(
        np.mean(seen[1][2]), abs=1e-5
    )


def test_the_reward_is_named_after_its_adapter_and_cannot_judge_nothing(model: RewardModel) -> None:
    reward = model.as_reward()
    assert reward.__name__ == "reward_model"
    assert reward(prompts=["", "a"], completions=["", "b"], answer=["1", "2"])[0] is None
    settings = reward.reward_settings
    assert settings.in_process and settings.batched and not settings.early


TEXTS = ["40 + 20 = 60\n2 + 5 = 7\n#### 67", "one line", "two\n\nlines\n", "ends at once"]


@pytest.mark.parametrize("chat", [False, True])
def test_a_step_earns_the_sigmoid_of_the_score_at_its_last_token(
    model: RewardModel, tokenizer: Any, chat: bool
) -> None:
    ids = [
        [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        for text in TEXTS
    ]
    ids[3].pop()  # cut off by the limit
    prompts, completions = PROMPTS[:4], TEXTS
    asked = [tokenizer(prompt).input_ids for prompt in prompts]
    if chat:
        prompts, completions = (
            CHAT[:4],
            [[{"role": "assistant", "content": text}] for text in TEXTS],
        )
        asked = [
            tokenizer.apply_chat_template(p, add_generation_prompt=True)["input_ids"]
            for p in prompts
        ]
    found = model.as_step_reward()(
        prompts=prompts, completions=completions, completion_ids=ids, answer=["x"] * 4
    )
    assert [steps.ends for steps in found] == [(13, 23, 30), (8,), (5, 11), (12,)]
    for text, prompt, completion, steps in zip(TEXTS, asked, ids, found, strict=True):
        for end, reward in zip(steps.ends, steps.rewards, strict=True):
            upto = next(
                k for k in range(1, 99) if tokenizer.decode(completion[:k]).startswith(text[:end])
            )
            score = model.token_scores([prompt + completion[:upto]])[0][-1].item()
            assert reward == pytest.approx(1 / (1 + math.exp(-score)), abs=1e-5)


def test_what_is_not_written_by_its_tokens_earns_none(model: RewardModel, tokenizer: Any) -> None:
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS]
    ids[1] = ids[0]
    found = model.as_step_reward()(
        prompts=PROMPTS[:4], completions=TEXTS, completion_ids=ids, answer=["x"] * 4
    )
    assert [steps is None for steps in found] == [False, True, False, False]


def test_what_has_no_step_or_no_position_earns_none(model: RewardModel, tokenizer: Any) -> None:
    texts = ["", "said", "a " * 80, "fine"]
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    ids[0], ids[1] = [tokenizer.eos_token_id], []
    assert len(ids[2]) <= 256 < len(ids[2]) + len(tokenizer("1 " * 60).input_ids)
    rows = {"prompts": ["a", "b", "1 " * 60, "c"], "completions": texts, "completion_ids": ids}
    found = model.as_step_reward(by=" ")(**rows)
    assert found[:3] == [None, None, None] and isinstance(found[3], StepRewards)
    rows["prompts"][2] = "1"
    assert len(model.as_step_reward(by=" ")(**rows)[2].rewards) == 80


def watched(reward: Callable[..., Any]) -> tuple[Callable[..., Any], list[dict[str, Any]]]:
    calls: list[dict[str, Any]] = []

    @reward_settings(in_process=True, batched=True, early=False)
    def spy(**columns: Any) -> Any:
        calls.append({**columns, "said": reward(**columns)})
        return calls[-1]["said"]

    return spy, calls


def test_a_run_on_step_rewards_trains_on_their_process_advantages(
    make_trainer: Callable[..., Any],
    tiny_checkpoint: Path,
    tokenizer: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    policy = policy_on(tiny_checkpoint, lora_dropout=0.0)
    model = RewardModel.on(policy, tokenizer)
    stirred(model)
    assert model.as_step_reward().__name__ == "process_reward_model"
    spy, calls = watched(model.as_step_reward(by=" "))
    trainer = make_trainer(model=policy, reward_funcs=[spy], learning_rate=1e-2)
    assert "was tried on a few rows" not in caplog.text
    (trial,) = calls
    assert [len(steps.ends) for steps in trial["said"]] == [
        len(text.split()) for text in trial["completions"]
    ]
    batches: list[tuple[dict[str, Any], torch.Tensor]] = []
    roll_out = trainer._roll_out
    trainer._roll_out = lambda rows: batches.append(roll_out(rows)) or batches[-1]
    before = {name: weight.clone() for name, weight in policy.named_parameters()}
    trainer.train()
    assert {
        name.split(".")[-2]
        for name, weight in policy.named_parameters()
        if not weight.equal(before[name])
    } == {"default"}
    for call, (batch, _) in zip(calls[1:], batches, strict=True):
        said, ids = call["said"], call["completion_ids"]
        assert any(len(steps.ends) > 1 for steps in said)
        rows = zip(call["completions"], ids, said, strict=True)
        ends = [
            step_end_tokens(tokenizer, text, tokens, steps.ends) for text, tokens, steps in rows
        ]
        expected = process_advantages(
            [steps.rewards for steps in said], ends, list(map(len, ids)), 4
        )
        torch.testing.assert_close(batch["advantages"].double(), expected, atol=1e-5, rtol=0)
        assert expected.abs().max() > 0.5


@pytest.mark.long
def test_a_run_beside_a_reward_model_resumes_and_leaves_nothing_that_looks_like_one(
    make_trainer: Callable[..., Any], tiny_checkpoint: Path, tokenizer: Any, tmp_path: Path
) -> None:
    def trainer_on(policy: PeftModel, model: RewardModel) -> Any:
        saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "learning_rate": 1e-2}
        return make_trainer(model=policy, reward_funcs=[model.as_step_reward(by=" ")], **saving)

    policy = policy_on(tiny_checkpoint)
    model = RewardModel.on(policy, tokenizer)
    stirred(model)
    model.save(tmp_path / "rm")
    trainer = trainer_on(policy, model)
    trainer.train()
    trainer.save_model()
    again = policy_on(tiny_checkpoint)
    loaded = RewardModel.load(tmp_path / "rm", again, tokenizer)
    resumed = trainer_on(again, loaded)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    assert resumed.state.global_step == 2
    own, other = dict(policy.named_parameters()), dict(again.named_parameters())
    assert own.keys() == other.keys() and all(torch.equal(own[name], other[name]) for name in own)
    assert [name for name, weight in other.items() if weight.requires_grad] == [
        n for n in other if ".default." in n
    ]
    assert torch.equal(loaded.scores(PROMPTS, COMPLETIONS), model.scores(PROMPTS, COMPLETIONS))
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint-1"):
        with pytest.raises(
            ModelError,
            match=r"reward holds an adapter without a reward model's head.* RewardModel\.save",
        ):
            RewardModel.load(folder / "reward", again, tokenizer, adapter="other")
        with pytest.raises(RewardSpecError, match="lacks weights of a reward model"):
            reward_by_name(["a"], ["b"], model=str(folder / "reward"))
    assert set(again.peft_config) == {"default", "ref", "reward"}
