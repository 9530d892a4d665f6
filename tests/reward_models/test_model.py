"""The reward model on the policy's base: PEFT reads equal scores, the policy does not change."""

import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo_hf import StepRewards, reward_settings
from grpo_hf.algorithm.advantages import process_advantages
from grpo_hf.errors import DataError, ModelError, OutputExistsError, RewardSpecError
from grpo_hf.models import adapters as roles
from grpo_hf.reward_models.model import RewardModel
from grpo_hf.reward_models.preferences import Pair, pair_loss
from grpo_hf.rewards.reward_model import reward_model as reward_by_name
from grpo_hf.scoring.steps import step_end_tokens

PROMPTS = [
    "6 * 7?",
    "How many apples are left of 12, if 5 are eaten?",
    "1 + 1 = ",
    "Tom has 3 boxes.",
] * 2
COMPLETIONS = [" 42", " She has 7.\n#### 7", " 2", " " + "and so on " * 9] * 2
CHAT = [[{"role": "user", "content": text}] for text in PROMPTS]
ANSWERS = [[{"role": "assistant", "content": text}] for text in COMPLETIONS]
IDS = [[17, 30, 45, 61], [33, 29], [20, 21, 22, 23, 24, 25, 26]]
PAIRS = [Pair(f"{n} + {n} = ", f"{2 * n}", "no idea", 0.0) for n in range(16)]


def policy_on(checkpoint: Path, **lora: Any) -> PeftModel:
    """Return a policy that differs from its base, with dropout that would change its outputs."""
    torch.manual_seed(3)
    settings = {
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.3,
        "target_modules": ["q_proj", "v_proj", "down_proj"],
    }
    base = AutoModelForCausalLM.from_pretrained(checkpoint)
    return get_peft_model(
        base,
        LoraConfig(**(settings | {"task_type": "CAUSAL_LM", "init_lora_weights": False} | lora)),
    )


@pytest.fixture
def policy(tiny_checkpoint: Path) -> PeftModel:
    return policy_on(tiny_checkpoint)


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_checkpoint, padding_side="left")


@pytest.fixture
def model(policy: PeftModel, tokenizer: Any) -> RewardModel:
    """A reward model whose adapter does something."""
    made = RewardModel.on(policy, tokenizer)
    stirred(made)
    return made


def stirred(model: RewardModel) -> None:
    generator = torch.Generator().manual_seed(5)
    for weight in roles.role_weights(model.model, model.adapter).values():
        weight.data.normal_(std=0.1, generator=generator)


def classifier(folder: Path) -> Any:
    return AutoPeftModelForSequenceClassification.from_pretrained(str(folder), num_labels=1).eval()


def alone(model: Any, ids: list[int]) -> float:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits.item()


# Scores


def test_an_untrained_one_is_its_head_on_the_base(policy: PeftModel, tokenizer: Any) -> None:
    made = RewardModel.on(policy, tokenizer)
    with torch.no_grad(), policy.disable_adapter():
        states = policy.get_base_model().model(torch.tensor([IDS[0]])).last_hidden_state
    torch.testing.assert_close(
        made.token_scores(IDS)[0], (states @ made.head.weight.T)[0, :, 0], atol=1e-6, rtol=0
    )


def test_peft_and_the_reward_read_the_same_scores_from_its_folder(
    model: RewardModel, tokenizer: Any, tmp_path: Path
) -> None:
    texts, chats = model.scores(PROMPTS, COMPLETIONS), model.scores(CHAT, ANSWERS)
    model.save(tmp_path / "rm")
    loaded = classifier(tmp_path / "rm")
    expected = [
        alone(loaded, tokenizer(p + c).input_ids) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)
    ]
    assert texts.tolist() == pytest.approx(expected, abs=1e-5)
    assert len({round(score, 3) for score in expected}) == 4  # or equality would mean little
    assert reward_by_name(COMPLETIONS, PROMPTS, model=str(tmp_path / "rm")) == pytest.approx(
        expected, abs=1e-5
    )
    assert reward_by_name(ANSWERS, CHAT, model=str(tmp_path / "rm")) == pytest.approx(
        chats.tolist(), abs=1e-5
    )
    assert chats.tolist() != pytest.approx(expected, abs=1e-3)


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


# The policy is left alone


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


# Learning


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


# Files


def test_a_saved_one_comes_back(
    model: RewardModel, tiny_checkpoint: Path, tokenizer: Any, tmp_path: Path
) -> None:
    scores = model.scores(PROMPTS, COMPLETIONS)
    model.save(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS" and config["modules_to_save"] == ["score"]
    weights = load_file(tmp_path / "adapter_model.safetensors")
    assert {".".join(name.split(".")[:3]) for name in weights} == {
        "base_model.model.score",
        "base_model.model.model",
    }
    back = RewardModel.load(tmp_path, policy_on(tiny_checkpoint, r=2), tokenizer)
    assert torch.equal(back.scores(PROMPTS, COMPLETIONS), scores)
    model.save(tmp_path)  # its own folder it may write again


def test_no_other_folder_is_overwritten(model: RewardModel, tmp_path: Path) -> None:
    model.model.save_pretrained(tmp_path / "policy", selected_adapters=["default"])
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("policy", "notes", "file"):
        with pytest.raises(
            OutputExistsError, match=f"{name} holds something other than a reward model"
        ):
            model.save(tmp_path / name)
    assert (
        json.loads((tmp_path / "policy" / "adapter_config.json").read_text())["task_type"]
        == "CAUSAL_LM"
    )


def test_what_does_not_fit_is_refused(
    model: RewardModel, tiny_checkpoint: Path, tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="has an adapter 'reward' already"):
        RewardModel.on(model.model, tokenizer)
    with pytest.raises(
        ModelError, match=r"came to LlamaForCausalLM with NoneType. Give get_peft_model"
    ):
        RewardModel.on(AutoModelForCausalLM.from_pretrained(tiny_checkpoint), tokenizer)
    with pytest.raises(ModelError, match="changes the base weights"):
        RewardModel.on(
            model.model, tokenizer, adapter="other", lora=LoraConfig(init_lora_weights="pissa")
        )
    model.model.save_pretrained(tmp_path, selected_adapters=["default"])
    with pytest.raises(
        ModelError, match="holds an adapter without a reward model's head, as a trainer writes one"
    ):
        RewardModel.load(tmp_path, model.model, tokenizer, adapter="other")
    save_file(
        {"base_model.model.score.weight": torch.zeros(1, 64)},
        tmp_path / "adapter_model.safetensors",
    )
    with pytest.raises(ModelError, match=r"the head is \(1, 64\); expected \(1, 128\)"):
        RewardModel.load(tmp_path, model.model, tokenizer, adapter="other")
    with pytest.raises(ModelError, match="nowhere"):
        RewardModel.load(tmp_path / "nowhere", model.model, tokenizer, adapter="other")
    assert set(model.model.peft_config) == {"default", "reward"}


def test_another_base_is_refused_and_leaves_nothing(
    model: RewardModel, tokenizer: Any, tmp_path: Path
) -> None:
    base = AutoModelForCausalLM.from_config(
        model.model.config.__class__(**model.model.config.to_dict() | {"num_hidden_layers": 2})
    )
    model.save(tmp_path)
    policy = get_peft_model(base, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ModelError, match=r"does not fit the base: .*layers\.2"):
        RewardModel.load(tmp_path, policy, tokenizer)
    assert set(policy.peft_config) == {"default"}


def test_push_uploads_what_save_writes(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = []

    def upload(_: Any, *, repo_id: str, folder_path: str, **__: Any) -> None:
        calls.append(
            (repo_id, {file.name: file.read_bytes() for file in Path(folder_path).iterdir()})
        )

    monkeypatch.setattr(
        huggingface_hub.HfApi,
        "create_repo",
        lambda _, repo_id, **given: calls.append((repo_id, given)),
    )
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    model.push("org/rm", private=True)
    model.save(tmp_path)
    assert calls[0] == ("org/rm", {"private": True, "exist_ok": True})
    assert calls[1] == ("org/rm", {file.name: file.read_bytes() for file in tmp_path.iterdir()})


# In a trainer


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


# Steps as rewards

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
    batches: list[dict[str, Any]] = []
    roll_out = trainer._roll_out
    trainer._roll_out = lambda rows: batches.append(roll_out(rows)) or batches[-1]
    before = {name: weight.clone() for name, weight in policy.named_parameters()}
    trainer.train()
    assert {
        name.split(".")[-2]
        for name, weight in policy.named_parameters()
        if not weight.equal(before[name])
    } == {"default"}
    for call, batch in zip(calls[1:], batches, strict=True):
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
