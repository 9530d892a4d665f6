"""A KL term that steers itself: β follows its target, and the reference the policy."""

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    LoraConfig,
    PeftModel,
    PromptTuningConfig,
    get_peft_model,
    get_peft_model_state_dict,
)
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, TrainerCallback

from grpo_hf import GRPOConfig, GRPOTrainer, trl_seam
from grpo_hf.algorithm import kl_control as steering
from grpo_hf.errors import ConfigError, ModelError, ReferenceDriftError
from grpo_hf.models import adapters as roles
from grpo_hf.models.reference import as_reference, reset_reference
from grpo_hf.run_context import RunTraits

MakeTrainer = Callable[..., GRPOTrainer]
LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
FAST = {"learning_rate": 1e-2, "max_steps": 4, "beta": 0.5}


def load(checkpoint: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(checkpoint)


def policy(model: Any) -> dict[str, torch.Tensor]:
    """A copy of the weights that train."""
    return {name: w.detach().clone() for name, w in model.named_parameters() if ".default." in name}


def same(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return weights.keys() == others.keys() and all(
        torch.equal(w, others[name]) for name, w in weights.items()
    )


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(3, 13)[None]).logits


def logged(trainer: GRPOTrainer, name: str) -> list[float]:
    return [row[name] for row in trainer.state.log_history if name in row]


# β


def test_beta_follows_the_equation_over_a_sequence() -> None:
    """Compare with arXiv 1909.08593, section 2.2.

    The KLs are below, near and above the target, clipped on both sides and not.
    """
    kls = torch.tensor([0.0, 1e-3, 0.07, 0.09, 0.1, 0.11, 0.125, 0.5, 40.0], dtype=torch.float64)
    factors = 1 + 0.1 * ((kls - 0.1) / 0.1).clamp(-0.2, 0.2)
    beta = 0.04
    for kl, expected in zip(kls.tolist(), (0.04 * factors.cumprod(0)).tolist(), strict=True):
        beta = steering.adapted_beta(beta, kl, target=0.1)
        assert beta == pytest.approx(expected, rel=1e-12)


class StepMetrics(TrainerCallback):
    """Collect TRL's KLs of each optimizer step, and the β of its losses.

    The KLs are read before they are averaged and cleared.
    """

    def __init__(self, trainer: GRPOTrainer) -> None:
        self.trainer, self.seen, self.kls, self.betas = trainer, 0, [], []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seen = len(self.trainer._metrics["train"]["kl"])
        self.betas.append(self.trainer.beta)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        kls = self.trainer._metrics["train"]["kl"][self.seen :]
        self.kls.append(sum(kls) / len(kls))


@pytest.mark.long
@pytest.mark.parametrize(("target", "clip"), [(1e-7, 0.2), (1e3, 0.2), (1e-2, 1e9)])
def test_a_run_steers_beta_by_the_kl_of_each_optimizer_step(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, target: float, clip: float
) -> None:
    """A target far below the KL moves β up, one far above down; without the clip every KL counts.

    A step has two micro-batches, and metrics are logged, and so cleared, every second step.
    """
    monkeypatch.setattr(steering, "MAX_ERROR", clip)
    steps = {"gradient_accumulation_steps": 2, "logging_steps": 2, "max_steps": 4}
    trainer = make_trainer(peft_config=LORA, target_kl=target, **FAST | steps)
    seen = StepMetrics(trainer)
    trainer.add_callback(seen)
    trainer.train()
    betas = [0.5]
    for kl in seen.kls:
        betas.append(betas[-1] * (1 + 0.1 * min(max((kl - target) / target, -clip), clip)))
    assert [*seen.betas, trainer.beta] == pytest.approx(betas, rel=1e-12)
    assert clip > 1 or (trainer.beta > 0.5) is (target < min(seen.kls[1:]))
    assert logged(trainer, "beta") == pytest.approx([sum(betas[:2]) / 2, sum(betas[2:4]) / 2])


@pytest.mark.long
def test_the_losses_have_the_beta_that_is_logged(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """The first losses are equal with and without a target; of the second only β differs.

    Both runs have the same samples.
    """
    steered, fixed = [], []
    for losses, more in ((steered, {"target_kl": 1e3}), (fixed, {})):
        trainer = make_trainer(
            peft_config=LORA,
            output_dir=str(tmp_path / f"run-{len(more)}"),
            **FAST | {"max_steps": 2} | more,
        )
        trainer.train()
        losses += logged(trainer, "loss")
    assert steered[0] == fixed[0]
    assert (
        logged(trainer, "completions/min_length")[1] == 8
    )  # so the mean over tokens is that over completions
    assert steered[1] - fixed[1] == pytest.approx((0.49 - 0.5) * logged(trainer, "kl")[1], rel=1e-2)
    assert not logged(trainer, "beta")


@pytest.mark.long
@pytest.mark.parametrize("restore", [False, True])
def test_a_resumed_run_goes_on_with_its_beta(make_trainer: MakeTrainer, restore: bool) -> None:
    settings = FAST | {
        "peft_config": LORA,
        "target_kl": 1e-7,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    first = make_trainer(**settings | {"max_steps": 2})
    first.train()
    resumed = make_trainer(
        **settings | {"max_steps": 4}, restore_callback_states_from_checkpoint=restore
    )
    resumed.train(resume_from_checkpoint=True)
    assert first.beta != 0.5
    assert resumed.beta == pytest.approx(first.beta * 1.02**2)
    assert logged(resumed, "beta") == pytest.approx(
        [0.5, *(0.5 * 0.98 * 1.02**step for step in range(3))]
    )


@pytest.mark.long
def test_a_run_that_is_resumed_with_a_target_starts_at_its_beta(make_trainer: MakeTrainer) -> None:
    saving = {"peft_config": LORA, "save_strategy": "steps", "save_steps": 1}
    make_trainer(**FAST | saving | {"max_steps": 1}).train()
    resumed = make_trainer(**FAST | saving | {"max_steps": 2, "target_kl": 1e-7})
    resumed.train(resume_from_checkpoint=True)
    assert resumed.beta == pytest.approx(0.5 * 1.02)


# Resets


@pytest.fixture(params=["new", "continued"])
def start(request: Any, tiny_checkpoint: Path, tmp_path: Path) -> dict[str, Any]:
    """Trainer arguments for a new adapter, and for one that is not a no-op and goes on."""
    if request.param == "new":
        return {"peft_config": LORA}
    model = get_peft_model(load(tiny_checkpoint), LORA)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    model.save_pretrained(tmp_path / "adapter")
    return {"model": roles.continue_adapter(load(tiny_checkpoint), str(tmp_path / "adapter"))}


class SecondModel(TrainerCallback):
    """A reset without adapters: a deep copy of the whole policy becomes TRL's second model."""

    def __init__(self, trainer: GRPOTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step % 2 == 0:
            self.trainer.ref_model = copy.deepcopy(model).eval()


class SavedReference(TrainerCallback):
    """At the first step of a resumed run the reference is the one in the checkpoint, and frozen."""

    def __init__(self, saved: dict[str, torch.Tensor]) -> None:
        self.saved = saved

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        assert same(get_peft_model_state_dict(model, adapter_name="ref"), self.saved)
        assert not any(w.requires_grad for name, w in model.named_parameters() if ".ref." in name)


@pytest.mark.long
def test_a_reset_reference_is_a_copy_of_the_policy(
    make_trainer: MakeTrainer, start: dict[str, Any]
) -> None:
    """The same samples, KLs and weights as a run with copies of the whole model as references."""
    again = copy.deepcopy(start)
    settings = FAST | {"max_steps": 5}
    trainer = make_trainer(**settings | start, reference_reset_every=2)
    trainer.train()
    other = make_trainer(**settings | again, output_dir=trainer.args.output_dir + "-copies")
    other.add_callback(SecondModel(other))
    other.train()
    kl = logged(trainer, "kl")
    assert kl == pytest.approx(logged(other, "kl"), abs=1e-7)
    assert [value <= 1e-6 for value in kl] == [
        True,
        False,
        True,
        False,
        True,
    ]  # 0 at first and after each reset
    assert same(policy(trainer.model), policy(other.model))


@pytest.mark.long
@pytest.mark.parametrize(
    ("start", "killed_after"), [("new", 3), ("continued", 2)], indirect=["start"]
)
def test_a_resumed_run_has_the_reference_that_it_had(
    make_trainer: MakeTrainer, start: dict[str, Any], tmp_path: Path, killed_after: int
) -> None:
    """A run that was killed at a reset, or one step after it, ends as a whole run does.

    Its reference, its KLs and its policy are the same.
    """
    again, settings = (
        copy.deepcopy(start),
        FAST | {"reference_reset_every": 2, "save_strategy": "steps"},
    )
    whole = make_trainer(**settings | start, save_steps=killed_after)
    whole.train()
    checkpoint = tmp_path / "run" / f"checkpoint-{killed_after}"
    saved = load_file(checkpoint / "ref" / "adapter_model.safetensors")
    metrics = logged(whole, "kl")
    resumed = make_trainer(**settings | again)
    resumed.add_callback(SavedReference(saved))
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert logged(resumed, "kl") == metrics
    assert same(policy(resumed.model), policy(whole.model))
    with (
        as_reference(resumed.model) as reference,
        as_reference(whole.model) as expected,
    ):
        assert torch.equal(logits(reference), logits(expected))


ADAPTERS = {
    "LoRA": LORA,
    "DoRA": LoraConfig(r=4, target_modules="all-linear", use_dora=True, task_type="CAUSAL_LM"),
    "a module in full": LoraConfig(
        r=4,
        target_modules=["q_proj"],
        modules_to_save=["post_attention_layernorm"],
        task_type="CAUSAL_LM",
    ),
    "embeddings": LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"], task_type="CAUSAL_LM"),
    "tokens": LoraConfig(
        r=4, target_modules=["q_proj"], trainable_token_indices=[3, 4], task_type="CAUSAL_LM"
    ),
    "soft prompts": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
}


FULL, HALF = torch.float32, torch.bfloat16


@pytest.mark.parametrize(
    ("adapter", "dtype", "base"),
    [(adapter, FULL, FULL) for adapter in ADAPTERS]
    + [
        ("LoRA", FULL, HALF),
        ("LoRA", HALF, FULL),
        ("DoRA", FULL, HALF),
    ],  # PEFT's, TRL's on a 4-bit base, PEFT's
)
def test_every_weight_of_an_adapter_is_copied(
    tiny_checkpoint: Path, adapter: str, dtype: torch.dtype, base: torch.dtype
) -> None:
    """Copy twice, as the policy moves on, and draw no random number.

    The copy is frozen, and equal bit for bit in the policy's dtype.
    """
    model = get_peft_model(load(tiny_checkpoint).to(base), copy.deepcopy(ADAPTERS[adapter]))
    for weight in (weight for weight in model.parameters() if weight.requires_grad):
        weight.data = weight.data.to(dtype)
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    seen = [logits(model)]
    for _ in range(2):
        with torch.no_grad():
            for weight in (weight for weight in model.parameters() if weight.requires_grad):
                weight += 0.05 * torch.randn_like(weight)
        seen.append(logits(model))
        random = torch.get_rng_state()
        reset_reference(model)
        assert torch.equal(torch.get_rng_state(), random)
        with as_reference(model):
            assert torch.equal(logits(model), seen[-1])
        assert model.active_adapter == "default"
        assert [
            name for name, weight in model.named_parameters() if weight.requires_grad
        ] == trained
    with torch.no_grad():
        next(weight for weight in model.parameters() if weight.requires_grad).mul_(2)
    with as_reference(model):
        assert torch.equal(logits(model), seen[-1])  # a copy, not the policy's own tensors
    assert not any(
        torch.equal(one, other) for one, other in itertools.pairwise([*seen, logits(model)])
    )


def test_the_optimizer_and_ddp_do_not_see_the_copy(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A model that DDP wrapped before the reset has the gradients of a model without DDP."""
    plain = get_peft_model(load(tiny_checkpoint), LORA)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        model = copy.deepcopy(plain)
        wrapped = DistributedDataParallel(model)
        optimizers = [
            torch.optim.SGD([w for w in m.parameters() if w.requires_grad], lr=1.0)
            for m in (plain, model)
        ]
        for _ in range(3):
            for forward, optimizer in zip((plain, wrapped), optimizers, strict=True):
                optimizer.zero_grad()
                forward(
                    input_ids=torch.arange(3, 13)[None], labels=torch.arange(3, 13)[None]
                ).loss.backward()
                optimizer.step()
            reset_reference(model)
            with as_reference(model):
                assert torch.equal(logits(model), logits(plain))
        assert same(policy(model), policy(plain))
    finally:
        torch.distributed.destroy_process_group()


class Write(TrainerCallback):
    """Write into one weight of a kind, as a bug would."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        next(w for name, w in model.named_parameters() if self.kind in name).data.view(-1)[7] += (
            1e-3
        )


def test_the_base_is_still_checked(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(peft_config=LORA, reference_reset_every=1, max_steps=1)
    trainer.add_callback(Write("base_layer.weight"))
    with pytest.raises(ReferenceDriftError, match="frozen weights changed"):
        trainer.train()


@pytest.mark.parametrize("start", ["continued"], indirect=True)
def test_a_reference_that_is_not_reset_is_still_checked(
    make_trainer: MakeTrainer, start: dict[str, Any]
) -> None:
    trainer = make_trainer(**start, max_steps=1)
    trainer.add_callback(Write("lora_B.ref"))
    with pytest.raises(ReferenceDriftError, match="frozen weights changed"):
        trainer.train()


@pytest.mark.long
def test_the_saved_policy_is_used_as_ever(
    make_trainer: MakeTrainer, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """The folder's adapter is the policy; the last reference lies in `ref/`.

    A run that goes on does not read `ref/`.
    """
    trainer = make_trainer(peft_config=LORA, reference_reset_every=3, **FAST)
    trainer.train()
    trainer.save_model()
    now, folder = logits(trainer.model), tmp_path / "run"
    assert torch.equal(logits(PeftModel.from_pretrained(load(tiny_checkpoint), folder)), now)
    assert {file.name for file in (folder / "ref").iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    model = roles.continue_adapter(load(tiny_checkpoint), str(folder))
    going_on = make_trainer(
        model=model, output_dir=str(tmp_path / "on"), reference_reset_every=2, max_steps=1
    )
    with as_reference(going_on.model) as reference:
        assert torch.equal(logits(reference), now)
    going_on.train()
    assert logged(going_on, "kl")[0] <= 1e-6


@pytest.mark.long
def test_a_run_resumed_without_resets_keeps_the_last_reference(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    saving = {"peft_config": LORA, "save_strategy": "steps", "save_steps": 2}
    make_trainer(**FAST | saving | {"max_steps": 2, "reference_reset_every": 2}).train()
    resumed = make_trainer(**FAST | saving)
    resumed.train(resume_from_checkpoint=True)
    assert logged(resumed, "kl")[2] <= 1e-6
    saved = load_file(tmp_path / "run" / "checkpoint-2" / "ref" / "adapter_model.safetensors")
    assert same(get_peft_model_state_dict(resumed.model, adapter_name="ref"), saved)


# What cannot be


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"target_kl": 0.0}, "target_kl is 0.0; expected a number above 0"),
        ({"reference_reset_every": -2}, "reference_reset_every is -2; expected a number above 0"),
        (
            {"target_kl": 0.1, "beta": 0.0},
            r"beta is 0, .* target_kl 0.1 would do nothing. Set --beta 0.04",
        ),
        (
            {"reference_reset_every": 5, "beta": 0.0},
            "beta is 0, .* reference_reset_every 5 would do nothing",
        ),
        (
            {"reference_reset_every": 5, "reference": "base"},
            "moves the reference, .* Set --reference initial",
        ),
    ],
)
def test_settings_that_contradict_each_other(
    tmp_path: Path, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        GRPOConfig(output_dir=str(tmp_path), use_cpu=True, **settings)


def test_without_an_adapter_there_is_nothing_to_copy(
    make_trainer: MakeTrainer, tiny_checkpoint: Path
) -> None:
    with pytest.raises(ModelError, match="--sync_ref_model true --ref_model_mixup_alpha 1"):
        make_trainer(model=str(tiny_checkpoint), reference_reset_every=2)


def test_sharded_weights_are_refused(module_trainer: MakeTrainer) -> None:
    trainer = module_trainer(peft_config=LORA, reference_reset_every=2)
    with pytest.raises(
        ConfigError, match=r"FSDP and DeepSpeed shard them. Train on plain processes"
    ):
        steering.kl_callbacks(
            trainer.args,
            trl_seam.KLTerm(trainer),
            trainer.model,
            RunTraits(sharded_weights=True),
        )
