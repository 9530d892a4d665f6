"""The KL of single tokens: median, maximum and the largest tokens of what a run trained on."""

import logging
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor
from transformers import TrainerCallback

from grpo_hf import GRPOTrainer, run_files
from grpo_hf.reporting.kl_tokens import KLTokens
from grpo_hf.reporting.metrics_file import read_metrics
from grpo_hf.reporting.spikes import KL_FILE, Line, Token, UsualKL, read_lines, spike_text, spikes
from grpo_hf.run_files import METRICS_FILE
from grpo_hf.trl_seam import KLTerm

LORA = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.0)
LOGGER = "grpo_hf.reporting.kl_tokens"
# The policy leaves its reference within a step.
MOVES = {"peft_config": LORA, "learning_rate": 0.05, "lr_scheduler_type": "constant"}


class Measuring(GRPOTrainer):
    """A trainer that computes the KL of each token once more, by two forwards in float64."""

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        width = inputs["completion_ids"].shape[1]
        with torch.no_grad():
            policy = self._plain(ids, mask, width)
            with self.model.disable_adapter():
                reference = self._plain(ids, mask, width)
        ratio = (reference - policy).double()
        kl = ratio.exp() - ratio - 1
        rows, places = inputs["completion_mask"].bool().nonzero(as_tuple=True)
        found = self.__dict__.setdefault("measured", {}).setdefault(self.state.global_step + 1, [])
        for row, place in zip(rows.tolist(), places.tolist(), strict=True):
            text = self.processing_class.decode(inputs["completion_ids"][row][place])
            numbers = [each[row, place].item() for each in (kl, policy, reference)]
            found.append((*numbers, text, place))
        return super()._compute_loss(model, inputs)

    def _plain(self, ids: Tensor, mask: Tensor, width: int) -> Tensor:
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = self.model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        scores = (logits[:, :-1].double() / self.temperature).log_softmax(-1)
        return scores.gather(2, ids[:, 1:, None])[..., 0][:, -width:]


def measuring(make_trainer: Any, **settings: Any) -> Measuring:
    trainer = make_trainer(**MOVES | settings)
    trainer.__class__ = Measuring
    return trainer


@pytest.mark.long
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_spread_is_that_of_the_tokens_of_a_step(
    make_trainer: Any, tmp_path: Path, packed: bool, accumulation: int
) -> None:
    trainer = measuring(
        make_trainer,
        packed_update=packed,
        gradient_accumulation_steps=accumulation,
        num_iterations=2,
        max_steps=4,
    )
    trainer.train()
    rows = [row for row in run_files.read_lines(tmp_path / "run" / METRICS_FILE) if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4] == list(trainer.measured)
    lines = read_lines(tmp_path / "run")
    for row, line, found in zip(rows, lines, trainer.measured.values(), strict=True):
        kls = torch.tensor([kl for kl, *_ in found])
        assert row["kl/median"] == pytest.approx(kls.median().item(), rel=1e-3, abs=1e-6)
        assert row["kl/max"] == pytest.approx(kls.max().item(), rel=1e-3, abs=1e-6)
        assert (line.step, line.tokens) == (row["step"], len(kls))
        # TRL's mean, of micro-batches; the number that the line of the step shows.
        assert line.mean == pytest.approx(row["kl"], rel=1e-6, abs=1e-9)
        assert line.total == pytest.approx(kls.sum().item(), rel=1e-3, abs=1e-5)
        check_largest(line, found)
    assert rows[-1]["kl/max"] > 1e-3, "the policy has not moved"


def check_largest(line: Line, found: list[Any]) -> None:
    expected = sorted(found, key=lambda each: -each[0])[: len(line.largest)]
    for token, (kl, policy, reference, text, place) in zip(line.largest, expected, strict=True):
        assert token.kl == pytest.approx(kl, rel=1e-3, abs=1e-6)
        # Equal numbers may come in any order, and in the first step all of them are 0.
        if kl > 1e-3:
            assert (token.text, token.place) == (text, place)
            assert token.policy == pytest.approx(policy, rel=1e-3)
            assert token.reference == pytest.approx(reference, rel=1e-3)


@pytest.mark.long
def test_a_line_of_several_steps_has_their_largest_token(make_trainer: Any, tmp_path: Path) -> None:
    trainer = measuring(make_trainer, logging_steps=2, max_steps=4)
    trainer.train()
    lines, rows = read_lines(tmp_path / "run"), read_metrics(tmp_path / "run")
    assert [line.step for line in lines] == [2, 4]
    for line, row in zip(lines, rows, strict=True):
        of_steps = [trainer.measured[step] for step in (line.step - 1, line.step)]
        largest = [max(kl for kl, *_ in found) for found in of_steps]
        assert row["kl/max"] == pytest.approx(max(largest), rel=1e-3) == line.max
        assert line.largest[0].step == line.step - 1 + largest.index(max(largest))
        assert line.mean == pytest.approx(row["kl"], rel=1e-4)


def test_a_beta_that_a_callback_sets_to_0_ends_nothing(make_trainer: Any, tmp_path: Path) -> None:
    """TRL logs no KL from there on, of rollouts that still have the reference's numbers."""

    class Without(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            trainer.beta = 0.0

    trainer = make_trainer(num_iterations=2, max_steps=3)
    trainer.add_callback(Without())
    trainer.train()
    assert trainer.state.global_step == 3
    lines = read_lines(tmp_path / "run")
    assert [line.step for line in lines] == [1, 2]
    assert lines[1].mean == pytest.approx(lines[1].total / lines[1].tokens, rel=1e-5)


def test_a_loss_that_logs_no_kl_gets_none(make_trainer: Any, tmp_path: Path) -> None:
    class Silent(GRPOTrainer):
        def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
            loss = super()._compute_loss(model, inputs)
            self._metrics["train"].pop("kl")
            return loss

    trainer = make_trainer(max_steps=2)
    trainer.__class__ = Silent
    trainer.train()
    steps = read_metrics(tmp_path / "run")
    assert len(steps) == 2 and all("kl" not in row and "kl/max" in row for row in steps)


@pytest.mark.parametrize("logged", [math.nan, math.inf])
def test_a_mean_that_is_no_number_is_not_kept(
    make_trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: float
) -> None:
    monkeypatch.setattr(KLTerm, "kl_of_step", lambda _: logged)
    make_trainer(max_steps=2).train()
    for line in read_lines(tmp_path / "run"):
        assert line.mean == pytest.approx(line.total / line.tokens, rel=1e-5)


def test_without_a_kl_term_nothing_happens(make_trainer: Any, tmp_path: Path) -> None:
    make_trainer(**MOVES, beta=0.0).train()
    assert not (tmp_path / "run" / KL_FILE).exists() and read_metrics(tmp_path / "run")
    assert not any("kl" in row for row in read_metrics(tmp_path / "run"))


@pytest.mark.long
def test_no_tokens_are_kept_where_no_credit_is(make_trainer: Any, tmp_path: Path) -> None:
    make_trainer(**MOVES, log_credit=False).train()
    assert not (tmp_path / "run" / KL_FILE).exists()
    assert read_metrics(tmp_path / "run")[-1]["kl/max"] > 0


@pytest.mark.long
def test_noting_changes_no_weight(
    make_trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained() -> dict[str, Tensor]:
        torch.manual_seed(0)
        trainer = make_trainer(**MOVES, max_steps=3, output_dir=str(tmp_path / "weights"))
        trainer.train(resume_from_checkpoint=False)
        return {name: weight.clone() for name, weight in trainer.model.state_dict().items()}

    noted = trained()
    monkeypatch.setattr(KLTokens, "noted", lambda *_: nullcontext())
    (tmp_path / "weights").rename(tmp_path / "noted")
    alone = trained()
    assert (tmp_path / "noted" / KL_FILE).exists() and not (tmp_path / "weights" / KL_FILE).exists()
    assert all(torch.equal(noted[name], alone[name]) for name in alone)


def line_of(step: int, mean: float, largest: float, tokens: int = 1000) -> Line:
    token = Token(" 7", "#### 1", "<|end|>", largest, -8.1, -0.02, step, 9, "Question", "Answer")
    return Line(step, mean, mean / 4, largest, tokens, mean * tokens, [token])


def usual(means: list[float], maxima: list[float]) -> UsualKL:
    found = UsualKL()
    for mean, largest in zip(means, maxima, strict=True):
        found.add(line_of(1, mean, largest))
    return found


class TestSpikes:
    USUAL = usual([0.0002, 0.03, 0.04, 0.05], [0.1, 2.0, 3.0, 2.5])

    def test_it_is_named_by_its_token(self) -> None:
        text = spike_text(line_of(40, 17.2, 17_100.0), self.USUAL)
        assert text is not None
        assert text.startswith('KL 17.2 at step 40 comes from one token: " 7" after "#### 1"')
        assert "(reference 0.98, policy 0.0003; its KL is 1.71e+04, in step 40)" in text
        before = "In the 4 logged steps before, KL was 0.035"
        assert f"{before}; the median of the 1,000 tokens is 4.3." in text

    def test_a_token_that_the_mean_hides_is_one(self) -> None:
        text = spike_text(line_of(40, 0.1, 150.0, tokens=100_000), self.USUAL)
        assert text is not None and "has 2% of it in one token" in text

    @pytest.mark.parametrize(
        ("mean", "largest"), [(0.05, 3.0), (0.3, 20.0), (0.45, 60.0), (0.04, 90.0)]
    )
    def test_noise_and_growth_are_none(self, mean: float, largest: float) -> None:
        assert spike_text(line_of(40, mean, largest), self.USUAL) is None

    def test_a_run_whose_kl_is_large_has_none(self) -> None:
        assert spike_text(line_of(40, 2.5, 140.0), usual([2.0] * 5, [120.0] * 5)) is None

    @pytest.mark.parametrize("growth", [1.33, 1.9])
    def test_a_climb_is_none_and_a_token_that_stands_out_of_it_is_one(self, growth: float) -> None:
        # Of short answers the KL may grow by half and more with each step.
        climb = [2.0 * growth ** (step - 29) for step in range(30)]
        seen = UsualKL()
        for step, mean in enumerate(climb):
            line = line_of(step, mean, 30 * mean)
            assert spike_text(line, seen) is None
            seen.add(line)
        text = spike_text(line_of(30, climb[-1], 900.0), seen)
        assert text is not None and 'one token: " 7" after "#### 1"' in text

    def test_a_spike_hides_no_other_one(self) -> None:
        """Many are a reason to lower the learning rate, so each has to be said."""
        seen = usual([0.02] * 8, [2.0] * 8)
        found = []
        for step in range(9, 19):
            line = line_of(step, 1.0, 900.0) if step % 3 == 0 else line_of(step, 0.02, 2.0)
            if spike_text(line, seen) is not None:
                found.append(step)
            seen.add(line)
        assert found == [9, 12, 15, 18]

    def test_the_first_lines_have_nothing_to_be_compared_with(self) -> None:
        assert spike_text(line_of(2, 17.2, 17_100.0), usual([0.0], [0.0])) is None

    def test_torn_and_foreign_lines_are_passed_over(self, tmp_path: Path) -> None:
        assert spikes(tmp_path) == []
        (tmp_path / KL_FILE).write_text('{"step": 1}\n{"step": 2, "larg\n')
        assert spikes(tmp_path) == []


@pytest.mark.long
def test_a_run_says_its_spike_and_keeps_the_texts(
    make_trainer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Give one token of the fifth step a reference that finds it certain and a policy that does
    not."""

    class Spiking(GRPOTrainer):
        def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
            if self.state.global_step == 4:
                reference = inputs["ref_per_token_logps"].clone()
                reference[3, 2] += 10.0
                inputs = inputs | {"ref_per_token_logps": reference}
            return super()._compute_loss(model, inputs)

    trainer = make_trainer(peft_config=LORA, max_steps=6)
    trainer.__class__ = Spiking
    with caplog.at_level(logging.WARNING, logger=LOGGER):
        trainer.train()
    said = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    (spike,) = spikes(tmp_path / "run")
    # accelerate's logger puts the process before it.
    assert [text.removeprefix("[RANK 0] ") for text in said] == [spike.text] and spike.step == 5
    assert "at step 5 comes from one token" in spike.text
    top = spike.tokens[0]
    assert top.place == 2 and top.kl == pytest.approx(22015.5, rel=0.01)
    assert top.text in top.completion and top.prompt.endswith("= ")
    kept = read_lines(tmp_path / "run")
    assert not any(token.completion for line in kept if line.step != 5 for token in line.largest)
    # A run that goes on knows what was usual before.
    trainer.kl_tokens.on_train_begin(trainer.args, trainer.state, None)
    known = usual([line.mean for line in kept], [line.max for line in kept])
    taken_up = trainer.kl_tokens._usual
    assert (taken_up.lines, taken_up.mean) == (6, known.mean)
