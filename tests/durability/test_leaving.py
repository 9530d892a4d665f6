"""Signals in every phase of a run: it leaves with a checkpoint, and goes on as if none had come."""

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback, TrainerState

from grpo_hf import GRPOTrainer, reward_settings
from grpo_hf.durability import signals
from grpo_hf.durability.leaving import Departure, Leaving

pytestmark = pytest.mark.long

STEPS = 4
CLOCKS = re.compile("time|latency|seconds|waited|per_second")
SIGNALS = {
    "SIGTERM": (signals.Left, 143),
    "SIGHUP": (signals.Left, 129),
    "SIGUSR1": (signals.Left, 138),
    "SIGINT": (signals.Interrupted, None),
}


class Sender:
    """Sends a signal to this process, once, when the run comes to a place in a step."""

    def __init__(self) -> None:
        self.number, self.place, self.step = 0, "", -1

    def aim(self, number: int, place: str, step: int = 2) -> None:
        self.number, self.place, self.step = number, place, step

    def at(self, place: str, step: int) -> None:
        if (self.place, self.step) == (place, step):
            self.place = ""
            os.kill(os.getpid(), self.number)


class AtEvents(TrainerCallback):
    """Come to the places that transformers has events for."""

    def __init__(self, sender: Sender) -> None:
        self.sender = sender

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.sender.at("step begin", state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.sender.at("update", state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.sender.at("after the save", state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.sender.at("end", state.global_step)


@pytest.fixture
def sender() -> Iterator[Sender]:
    before = {name: signal.getsignal(getattr(signal, name)) for name in SIGNALS}
    yield Sender()
    # The handlers of the program are its own again.
    assert {name: signal.getsignal(getattr(signal, name)) for name in SIGNALS} == before


@pytest.fixture
def run(make_trainer: Any, tmp_path: Path, sender: Sender) -> Callable[..., GRPOTrainer]:
    """A trainer that comes to every place that a signal may be sent from."""

    def make(folder: str, **settings: Any) -> GRPOTrainer:
        @reward_settings(in_process=True)
        def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
            place = "scoring" if trainer.model.training else "evaluation"
            sender.at(place, trainer.state.global_step)
            return [float(sum(ids) % 7) for ids in completion_ids]

        # Rewards are tried before there is a trainer.
        trainer: Any = SimpleNamespace(model=torch.nn.Module(), state=TrainerState())
        trainer = make_trainer(
            reward_funcs=reward,
            peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
            output_dir=str(tmp_path / folder),
            **{
                "max_steps": STEPS,
                "learning_rate": 1e-2,
                "optim": "sgd",
                "early_rewards": False,
                "per_device_train_batch_size": 4,
            }
            | settings,
        )
        trainer.add_callback(AtEvents(sender))
        calls = {"of step": -1, "seen": 0}

        def forward_hook(*_: Any) -> None:
            if trainer.state.global_step != calls["of step"]:
                calls.update({"of step": trainer.state.global_step, "seen": 0})
            calls["seen"] += 1
            # After the prompt and two tokens.
            if calls["seen"] == 3:
                sender.at("rollout", trainer.state.global_step)

        # A layer's, which a grouped rollout does not mind.
        embedding = trainer.model.get_input_embeddings()
        forward = embedding.forward
        embedding.forward = lambda *a, **k: (forward_hook(), forward(*a, **k))[1]
        save = trainer.save_model

        def save_model(*a: Any, **k: Any) -> None:
            save(*a, **k)
            sender.at("save", trainer.state.global_step)

        trainer.save_model = save_model
        return trainer

    return make


def weights(trainer: GRPOTrainer) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def numbers(trainer: GRPOTrainer) -> dict[tuple[int, str], str]:
    """What was logged of each step, without what a clock says."""
    lines = {}
    for line in trainer.state.log_history:
        if "loss" in line:
            for name in line:
                if not CLOCKS.search(name):
                    # As text, because NaN is not equal to itself.
                    lines[line["step"], name] = repr(line[name])
    return lines


# The step of the checkpoint that is expected, for a signal in the step after the second one.
PLACES = {
    "step begin": 2,
    "rollout": 2,
    "scoring": 2,
    "update": 3,
    "save": 2,
    "after the save": 2,
    "end": STEPS,
}


@pytest.mark.parametrize("place", PLACES)
def test_a_run_goes_on_as_if_no_signal_had_come(
    run: Any, sender: Sender, tmp_path: Path, place: str, capsys: Any
) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2} if "save" in place else {}
    name = list(SIGNALS)[list(PLACES).index(place) % len(SIGNALS)]
    alone = run("alone", **settings)
    alone.train()
    sender.aim(getattr(signal, name), place, STEPS if place == "end" else 2)
    kind, code = SIGNALS[name]
    with pytest.raises(kind) as left:
        run("left", **settings).train()
    assert code is None or left.value.code == code
    checkpoint = tmp_path / "left" / f"checkpoint-{PLACES[place]}"
    assert [each.name for each in checkpoint.parent.glob("checkpoint-*")] == [checkpoint.name]
    assert f"left after step {PLACES[place]}, which is in {checkpoint}" in capsys.readouterr().err
    if place == "end":
        return
    resumed = run("left", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(resumed), weights(alone))
    assert numbers(resumed) == numbers(alone)


def test_a_reward_that_swallows_the_signal(run: Any, sender: Sender) -> None:
    """What it returns then is not what it would have returned."""
    alone = run("alone")
    alone.train()
    left = run("left")

    @reward_settings(in_process=True)
    def swallows(completion_ids: list[list[int]], **_: Any) -> list[float]:
        try:
            sender.at("scoring", left.state.global_step)
            return [float(sum(ids) % 7) for ids in completion_ids]
        except:  # noqa: E722
            return [float(place % 2) for place in range(len(completion_ids))]

    sender.aim(signal.SIGTERM, "scoring")
    left.reward_funcs = [swallows]
    with pytest.raises(signals.Left):
        left.train()
    resumed = run("left")
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(resumed), weights(alone))


def test_what_a_launcher_sends_on_later_counts_once(
    monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """Another process was asked first, and this one has heard of it from that."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    ended: list[int] = []
    monkeypatch.setattr(signals, "leave_at_once", ended.append)
    other = torch.tensor([0, signal.SIGINT])
    accelerator: Any = SimpleNamespace(num_processes=2, device="cpu", gather=lambda own: other)
    departure = Departure(accelerator)
    with pytest.raises(Leaving):
        departure.leave_if_asked()
    departure._note(signal.SIGINT, None)
    assert not ended


@pytest.mark.parametrize("apart", [0.1, 1.0])
def test_a_ctrl_c_that_comes_twice_counts_once_and_a_second_one_leaves_at_once(
    run: Any, sender: Sender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: float
) -> None:
    class AtOnce(Exception):
        pass

    def leave_at_once(number: int) -> None:
        raise AtOnce

    def twice(place: str, step: int) -> None:
        if (place, step) == ("update", 2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(apart)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(signals, "leave_at_once", leave_at_once)
    sender.at = twice  # type: ignore[method-assign]
    with pytest.raises(signals.Interrupted if apart < 0.5 else AtOnce):
        run("left").train()
    assert (tmp_path / "left/checkpoint-3").is_dir() == (apart < 0.5)


@pytest.mark.parametrize(("first", "said"), [("SIGINT", "a second Ctrl-C"), ("SIGTERM", "Ctrl-C")])
def test_it_says_which_ctrl_c_leaves_at_once(
    first: str, said: str, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(signals, "leave_at_once", ended.append)
    departure = Departure()
    departure._note(getattr(signal, first), None)
    assert f"with a checkpoint; {said} leaves at once." in capfd.readouterr().err
    departure._note(signal.SIGINT, None)
    assert bool(ended) == (first == "SIGTERM")


def test_before_the_first_step_there_is_a_checkpoint_too(run: Any, sender: Sender) -> None:
    alone = run("alone")
    alone.train()
    sender.aim(signal.SIGTERM, "rollout", 0)
    with pytest.raises(signals.Left):
        run("left").train()
    resumed = run("left")
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(resumed), weights(alone))


def test_an_evaluation_is_finished(run: Any, sender: Sender, make_trainer: Any) -> None:
    """Its random numbers are those of the run, and a run that goes on does not repeat it."""
    rows = Dataset.from_list([{"prompt": "1 + 1 = ", "answer": "2"}] * 4)
    settings = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 4}
    settings["eval_dataset"] = rows
    alone = run("alone", **settings)
    alone.train()
    sender.aim(signal.SIGTERM, "evaluation")
    with pytest.raises(signals.Left):
        run("left", **settings).train()
    resumed = run("left", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(resumed), weights(alone))


def test_one_rollout_for_several_steps(run: Any, sender: Sender, tmp_path: Path) -> None:
    """The rollout of the third step is the second one of the run; there the run goes back."""
    settings = {"num_iterations": 2}
    alone = run("alone", **settings)
    alone.train()
    sender.aim(signal.SIGTERM, "rollout")
    with pytest.raises(signals.Left):
        run("left", **settings).train()
    resumed = run("left", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(resumed), weights(alone))


def test_a_trainer_in_a_thread_leaves_signals_alone(run: Any) -> None:
    trainer, failed = run("thread", max_steps=1), []

    def train() -> None:
        try:
            trainer.train()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert not failed and trainer.state.global_step == 1
