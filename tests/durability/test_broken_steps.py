"""A step whose numbers are not finite is not made: it stops the run, or is left out by option."""

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainerCallback

from grpo_hf import GRPOTrainer
from grpo_hf.durability import finite
from grpo_hf.durability.broken_steps import MOST_IN_A_ROW
from grpo_hf.durability.kept_batch import read_batch, replay_rows
from grpo_hf.errors import ConfigError, ModelError, NotFiniteError, RolloutError
from grpo_hf.run_context import RunContext
from grpo_hf.trl_seam import loss_of

MakeTrainer = Callable[..., GRPOTrainer]
LORA = LoraConfig(r=2, target_modules=["q_proj"])
SAVES = {"save_strategy": "steps", "save_steps": 1}


def weights_of(trainer: GRPOTrainer) -> dict[str, Tensor]:
    named = trainer.model.named_parameters()
    return {name: weight.detach().clone() for name, weight in named if weight.requires_grad}


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


class WeightsAndMoments(TrainerCallback):
    """Remembers weights and the optimizer's state after each step."""

    def __init__(self, trainer: GRPOTrainer) -> None:
        self._trainer = trainer
        self.seen: dict[int, tuple[dict[str, Tensor], list[dict[str, Tensor]]]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        moments = []
        for entries in self._trainer.optimizer.state.values():
            held = {name: value for name, value in entries.items() if value is not None}
            moments.append({name: torch.as_tensor(held[name]).clone() for name in held})
        self.seen[state.global_step] = (weights_of(self._trainer), moments)


def break_loss(trainer: GRPOTrainer, steps: set[int], by: float = float("nan")) -> None:
    """Multiply the loss of some steps, counted from 1, as a subclass could."""
    compute = trainer._compute_loss

    def broken(model: Any, inputs: Any) -> Tensor:
        factor = by if trainer.state.global_step + 1 in steps else 1.0
        return compute(model, inputs) * factor

    trainer._compute_loss = broken


def break_rollout(trainer: GRPOTrainer, name: str, row: int) -> None:
    """Put a NaN into a row of what a rollout hands to the loss."""
    make = trainer._generate_and_score_completions

    def broken(inputs: Any) -> Any:
        batch = make(inputs)
        batch[name][row] = float("nan")
        return batch

    trainer._generate_and_score_completions = broken


@pytest.mark.long
@pytest.mark.parametrize("by", [float("nan"), float("inf")])
def test_a_broken_loss_in_the_last_step_ends_the_run_before_its_weights(
    make_trainer: MakeTrainer, tmp_path: Path, by: float
) -> None:
    trainer = make_trainer(peft_config=LORA, max_steps=3, **SAVES)
    break_loss(trainer, {3}, by)
    with pytest.raises(NotFiniteError, match=r"^step 3 is not made: .*the loss.*row 0: prompt '"):
        trainer.train()
    saved = tmp_path / "run"
    assert sorted(folder.name for folder in saved.glob("checkpoint-*")) == [
        "checkpoint-1",
        "checkpoint-2",
    ]
    newest = load_file(saved / "checkpoint-2" / "adapter_model.safetensors")
    assert all(weight.isfinite().all() for weight in newest.values())
    assert all(weight.isfinite().all() for weight in weights_of(trainer).values())


@pytest.mark.long
def test_a_run_that_was_stopped_goes_on_from_its_checkpoint(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(peft_config=LORA, max_steps=3, **SAVES)
    break_loss(trainer, {3})
    with pytest.raises(NotFiniteError):
        trainer.train()
    resumed = make_trainer(peft_config=LORA, max_steps=3)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 3


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ref_per_token_logps", "the log-probabilities of the reference"),
        ("old_per_token_logps", "the log-probabilities of the policy that sampled"),
        ("advantages", "the advantages"),
    ],
)
def test_the_message_names_the_tensor_and_the_row(
    make_trainer: MakeTrainer, name: str, words: str
) -> None:
    # Two updates on a rollout need the log-probabilities of the policy that sampled.
    trainer = make_trainer(peft_config=LORA, num_iterations=2, packed_update=False)
    break_rollout(trainer, name, row=5)
    with pytest.raises(NotFiniteError) as caught:
        trainer.train()
    assert f"in {words}, in 1 of 8 rows of micro-batch 1 of 1" in str(caught.value)
    batch = read_batch(Path(trainer.args.output_dir)).micro_batches[0]
    [row] = (~batch[name].reshape(8, -1).isfinite().all(1)).nonzero()[:, 0].tolist()
    ids = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()]
    assert f"row {row}: prompt {trainer.processing_class.decode(ids)!r}" in str(caught.value)


@pytest.mark.parametrize("packed", [True, False])
def test_the_policys_log_probabilities_are_traced_to_a_row(
    make_trainer: MakeTrainer, packed: bool
) -> None:
    # A NaN that the model has for one token alone comes up where a row has that token.
    trainer = make_trainer(peft_config=LORA, beta=0.0, packed_update=packed)
    embedding = trainer.model.get_input_embeddings()
    seven = trainer.processing_class("7")["input_ids"][-1]

    def poison(_module: Any, given: Any, output: Tensor) -> Tensor:
        if not torch.is_grad_enabled() and not poison.always:
            return output
        return output.masked_fill((given[0] == seven)[..., None], float("nan"))

    poison.always = False
    prepared = trainer._prepare_inputs

    def prepare(batch: Any) -> Any:
        inputs = prepared(batch)
        # The rollout was whole; from here on the model is not.
        poison.always = True
        return inputs

    trainer._prepare_inputs = prepare
    embedding.register_forward_hook(poison)
    with pytest.raises(NotFiniteError, match="the log-probabilities of the policy") as caught:
        trainer.train()
    named = str(caught.value).partition("row ")[2]
    assert "7" in named.partition("The weights")[0]


def test_a_gradient_that_overflows_stops_a_step_whose_losses_are_finite(
    make_trainer: MakeTrainer,
) -> None:
    trainer = make_trainer(peft_config=LORA)
    before = weights_of(trainer)
    compute = trainer._compute_loss

    def steep(model: Any, inputs: Any) -> Tensor:
        loss = compute(model, inputs)
        # The root of 0 is 0, and its slope infinite.
        return loss + (loss - loss.detach()).abs().sqrt()

    trainer._compute_loss = steep
    with pytest.raises(NotFiniteError, match="the norm of the gradient is NaN or infinite"):
        trainer.train()
    assert equal(before, weights_of(trainer))


@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["sgd", "adamw_torch"])
def test_a_step_that_is_left_out_moves_nothing(
    make_trainer: MakeTrainer, optimizer: str, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(
        peft_config=LORA, max_steps=3, non_finite="skip", optim=optimizer, weight_decay=0.1
    )
    break_loss(trainer, {2})
    watch = WeightsAndMoments(trainer)
    trainer.add_callback(watch)
    seen = watch.seen
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert equal(seen[1][0], seen[2][0]) and not equal(seen[2][0], seen[3][0])
    for old, new in zip(seen[1][1], seen[2][1], strict=True):
        assert equal(old, new)
    assert trainer.state.global_step == 3
    assert sum("Step 2 is left out" in message for message in caplog.messages) == 1


@pytest.mark.long
def test_steps_are_not_left_out_for_ever(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(peft_config=LORA, max_steps=20, non_finite="skip")
    break_loss(trainer, set(range(3, 20)))
    last = 2 + MOST_IN_A_ROW
    with pytest.raises(NotFiniteError, match=f"^step {last} .*{MOST_IN_A_ROW} steps in a row"):
        trainer.train()


def test_a_beta_that_is_steered_survives_a_step_that_is_left_out(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(peft_config=LORA, max_steps=2, non_finite="skip", target_kl=0.1)
    break_rollout(trainer, "ref_per_token_logps", row=1)
    trainer.train()
    assert trainer.beta == trainer.args.beta


def test_a_kept_batch_shows_the_row_when_it_is_computed_again(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(peft_config=LORA)
    break_rollout(trainer, "ref_per_token_logps", row=2)
    with pytest.raises(NotFiniteError):
        trainer.train()
    again = make_trainer(peft_config=LORA)
    kept = read_batch(Path(again.args.output_dir))
    assert kept.step == 1 and equal(kept.weights, weights_of(again))
    rows = replay_rows(
        kept.micro_batches,
        lambda piece: loss_of(again, piece),
        again.model,
        again.processing_class,
    )
    broken = [row for row in rows if row.wrong]
    assert len(rows) == 8 and len(broken) == 1
    assert broken[0].wrong[:2] == ["the log-probabilities of the reference", "the loss"]
    assert broken[0].wrong[2].startswith("the gradient of base_model")
    assert all(row.gradient_norm < float("inf") for row in rows if not row.wrong)


def test_weights_that_are_not_finite_are_not_saved(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    # AdamW moves by about the learning rate, so the weights leave float32 in the first step.
    trainer = make_trainer(peft_config=LORA, max_steps=1, learning_rate=1e39, **SAVES)
    with pytest.raises(NotFiniteError, match=r"^after step 1 the weight base_model\S+ is NaN"):
        trainer.train()
    assert not list((tmp_path / "run").glob("checkpoint-*/adapter_model.safetensors"))
    unsaved = make_trainer(
        peft_config=LORA, max_steps=1, learning_rate=1e39, output_dir=str(tmp_path / "unsaved")
    )
    with pytest.raises(NotFiniteError, match=r"^after the last step"):
        unsaved.train()
    with pytest.raises(NotFiniteError, match=r"^after step 1"):
        unsaved.save_model(str(tmp_path / "saved"))
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize(
    ("rate", "reason"),
    [
        (1e37, r"The largest weight that trains is 1e\+37, and learning_rate is 1e\+37"),
        (3e38, r"the weight base_model\S+ is NaN or infinite, and learning_rate is 3e\+38"),
    ],
)
def test_logits_that_are_not_finite_name_step_and_weight(
    make_trainer: MakeTrainer, grouped: bool, rate: float, reason: str
) -> None:
    # After a step half of the adapter is as large as float32 can be, and its products are larger.
    adapter = LoraConfig(r=8, lora_alpha=8000, target_modules=["down_proj"])
    trainer = make_trainer(peft_config=adapter, learning_rate=rate, grouped_rollout=grouped)
    with pytest.raises(NotFiniteError, match=rf"^step 2 .*the policy's logits.*{reason}"):
        trainer.train()


def test_a_broken_checkpoint_is_not_gone_on_from(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(peft_config=LORA, max_steps=1, learning_rate=1e39, **SAVES)
    # Versions before this check have written such checkpoints.
    with monkeypatch.context() as patch:
        patch.setattr(finite, "check_weights", lambda *_: None)
        trainer.train()
    with pytest.raises(NotFiniteError, match=r"^in the checkpoint of step 1 the weight base_model"):
        make_trainer(peft_config=LORA).train(resume_from_checkpoint=True)


def test_losses_outside_of_a_training_are_not_kept(make_trainer: MakeTrainer) -> None:
    numbers = finite.StepNumbers(most=2)
    for value in range(5):
        numbers.add({}, torch.tensor(float(value)))
    assert [loss.item() for _, loss in numbers._micro_batches] == [3, 4]


@pytest.mark.parametrize(("scaler", "stops"), [(None, True), (object(), False)])
def test_the_scaler_of_float16_answers_for_gradients_that_overflow(
    scaler: Any, stops: bool
) -> None:
    numbers = finite.StepNumbers(most=1)
    accelerator: Any = SimpleNamespace(
        device=torch.device("cpu"), scaler=scaler, gather=lambda values: values
    )
    run = RunContext(accelerator, group_size=4, training=True, step=0)
    numbers.add({}, torch.tensor(1.0))
    assert (numbers.judge(torch.tensor(float("inf")), run) is not None) == stops
    # Not for a loss.
    numbers.add({}, torch.tensor(float("nan")))
    assert numbers.judge(torch.tensor(1.0), run) is not None


def test_a_broken_base_is_blamed_before_training(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(peft_config=LORA)
    layer = trainer.model.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
    layer.weight.data[3, 4] = float("nan")
    with pytest.raises(ModelError, match=r"^the base model has .*layers\.0\.mlp\.up_proj\.weight"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16])
def test_four_bits_that_lie_in_floats_are_no_numbers(
    make_trainer: MakeTrainer, tiny_checkpoint: Path, storage: torch.dtype
) -> None:
    """FSDP shards 4-bit weights that are stored as floats; their bits may read as NaN."""
    bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_storage=storage)
    base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, quantization_config=bits)
    packed = base.get_submodule("model.layers.0.mlp.up_proj").weight
    # The largest value in every place.
    packed.data.view(torch.uint8).fill_(255)
    assert packed.dtype == storage and packed.isnan().any()
    trainer = make_trainer(model=base, peft_config=LORA, max_steps=1)
    trainer.train()
    assert trainer.state.global_step == 1


def test_a_broken_adapter_is_not_the_bases_fault(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(peft_config=LORA)
    for name, weight in trainer.model.named_parameters():
        if "lora_A" in name:
            weight.data[0, 0] = float("inf")
    with pytest.raises(ModelError, match=r"^the policy, before any step, has a weight"):
        trainer.train()


@pytest.mark.parametrize(
    ("completion", "words"),
    [
        ([], r"no tokens in completion_ids\[3\] \(prompt '"),
        ([5, 10**6], r"the token id 1000000 in completion_ids\[3\] \(prompt '"),
        ([-1], r"the token id -1 in completion_ids\[3\]"),
    ],
)
def test_what_is_no_completion_is_named_with_its_row(
    make_trainer: MakeTrainer, completion: list[int], words: str
) -> None:
    def rollout(prompts: list[str], trainer: GRPOTrainer) -> dict[str, Any]:
        prompt_ids = trainer.processing_class(text=prompts)["input_ids"]
        completions = [[5, 6] for _ in prompts]
        completions[3] = completion
        return {"prompt_ids": prompt_ids, "completion_ids": completions, "logprobs": None}

    with pytest.raises(RolloutError, match=words):
        make_trainer(peft_config=LORA, rollout_func=rollout).train()


def test_a_step_can_only_be_left_out_or_stop(make_trainer: MakeTrainer) -> None:
    with pytest.raises(ConfigError, match="non_finite is 'ignore'; expected one of 'stop', 'skip'"):
        make_trainer(non_finite="ignore")
