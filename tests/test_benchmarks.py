"""Test the benchmarks: their counts, equal work on both sides, and errors for wrong numbers."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import (
    batches,
    common,
    hybrids,
    memory,
    plan,
    plot,
    rollout,
    scoring,
    step,
    timing,
    update,
)
from benchmarks.common import OURS, PEER, TRL
from benchmarks.flops import Shape, seen_pairs, useful_flops
from benchmarks.sides import make_trainer
from benchmarks.timing import Time
from grpo_hf.update import cpu_products

# Small enough for the embedded model.
SMALL = update.Case(
    "small", "P=12, C≤6, G=4, 2 groups", 1.0, prompt=12, longest=6, size=4, groups=2
)


@pytest.fixture(scope="module")
def trainers(tiny_checkpoint):
    """Return trainers of both sides for the embedded model."""
    trainers = {}
    for side in (TRL, OURS):
        trainers[side] = make_trainer(side, str(tiny_checkpoint), max_completion_length=8)
    return trainers


def arguments(folder: Path, **others: object) -> argparse.Namespace:
    return argparse.Namespace(
        model="models/some-model", repeats=1, threads=1, results=folder, **others
    )


def times(trl: float, ours: float) -> dict[str, list[Time]]:
    """Return two equal times for each side."""
    return {
        TRL: [Time(trl, 0.0, 2 * trl, trl)] * 2,
        OURS: [Time(ours, 0.0, 2 * ours, ours)] * 2,
    }


def first_adapter_weight(trainer) -> torch.Tensor:
    """Return the first B weight of the adapter."""
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            return weight
    raise AssertionError("the model has no adapter")


def test_pairs_are_those_of_a_mask() -> None:
    prompt = 5
    completions = [3, 1, 4]
    # The completion that a token belongs to; -1 for the shared part of the prompt.
    owner = [-1] * (prompt - 1)
    for index, length in enumerate(completions):
        owner += [index] * length
    pairs = 0
    for query in range(len(owner)):
        for key in range(query + 1):
            pairs += owner[key] in (-1, owner[query])
    assert seen_pairs(prompt, completions) == pairs


@pytest.mark.parametrize("reference", [True, False])
def test_operations_are_those_that_torch_counts(
    trainers, reference: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare the formula with torch's count of matrix products.

    torch does not count the attention kernel of a CPU; the test of pairs covers its formula. The
    first layer does not compute the gradient of its inputs, because nothing needs it.
    """
    # Nor does it count oneDNN's products.
    monkeypatch.setattr(cpu_products, "has_faster_products", lambda: False)
    trainer = trainers[OURS]
    for layer in trainer.model.modules():
        if isinstance(layer, LoraLayer):
            # torch does not count the in-place products of cpu_lora.py's forward.
            vars(layer).pop("forward", None)
    groups = SMALL.make(trainer.model.config.vocab_size)
    lengths = []
    for prompt, completions in groups:
        lengths.append((len(prompt), list(map(len, completions))))
    batch = batches.to_batch(groups, 0)
    shape = Shape.of(trainer.model)
    with FlopCounterMode(display=False) as counter:
        if reference:
            update.update(trainer, batch)
        else:
            trainer.beta = 0.0
            trainer.compute_loss(trainer.model, batch).backward()
            trainer.beta = 0.04
    products = ("mm", "addmm", "bmm")
    counted = 0
    for operation, count in counter.get_flop_counts()["Global"].items():
        if str(operation).split(".")[1] in products:
            counted += count
    without_attention = Shape(shape.body, shape.adapter, shape.head, 0, shape.layers)
    expected = useful_flops(without_attention, lengths, reference=reference)
    tokens = 0
    for prompt, completions in lengths:
        tokens += prompt - 1 + sum(completions)
    layer = trainer.model.get_base_model().model.layers[0].self_attn
    skipped = 0
    for linear in (layer.q_proj, layer.k_proj, layer.v_proj):
        skipped += linear.weight.numel() + linear.lora_A["default"].weight.numel()
    assert counted == expected - 2 * skipped * tokens


def test_attention_counts_two_forwards_and_a_backward_of_twice_that() -> None:
    shape = Shape(body=0, adapter=0, head=0, attention=6, layers=2)
    assert useful_flops(shape, [(5, [3, 1])]) == 4 * 4 * 6 * 2 * seen_pairs(5, [3, 1])


def test_crafted_batches_have_the_shape_they_are_asked_for() -> None:
    lengths = batches.ragged(16, 20)
    assert max(lengths) == 20 and min(lengths) >= 4 and len(set(lengths)) > 8
    groups = batches.crafted(12, lengths, 2, vocabulary=100)
    assert [len(prompt) for prompt, _ in groups] == [12, 11]
    batch = batches.to_batch(groups, padding=0, silent=1)
    assert batch["prompt_ids"].shape == batch["prompt_mask"].shape == (16, 12)
    assert batch["completion_mask"].sum(1).tolist() == lengths
    assert batch["prompt_mask"][8:, 0].tolist() == [0] * 8
    assert batch["num_items_in_batch"] == sum(lengths)
    assert batch["advantages"][:8].all() and not batch["advantages"][8:].any()


def test_recorded_completions_are_ragged_and_fit_their_prompts() -> None:
    for kind in ("zero-shot", "4-shot"):
        rows = batches.recorded(kind)
        lengths = []
        assert len(rows) >= 2
        for row in rows:
            assert len(row["completion_ids"]) == 8
            assert row["messages"][-1]["role"] == "user" and "####" in row["answer"]
            lengths += map(len, row["completion_ids"])
        assert len(set(lengths)) > 8 and max(lengths) <= 150
    # The file is part of the repository.
    assert batches.RECORDED.stat().st_size < 300_000


def test_sides_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    taken = timing.alternate(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=3
    )
    # The second repeat goes backwards.
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert list(map(len, taken.values())) == [3, 3]


def test_the_table_and_the_file_say_what_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        timing.comparison("fast", "a row", times(6.0, 2.0), bar=2.5, equal={OURS: True}),
        timing.comparison("slow", "another", times(6.0, 4.0), bar=2.0),
    ]
    common.report("example", rows, arguments(tmp_path))
    shown = capsys.readouterr().out
    assert "3.00×" in shown and "met" in shown and "missed" in shown
    written = json.loads((tmp_path / "example.json").read_text())
    assert [row["met"] for row in written["rows"]] == [True, False]
    assert written["rows"][0]["sides"][TRL]["cost"] == {
        "median": 6.0,
        "spread": 0.0,
        "all": [6.0, 6.0],
    }
    assert written["settings"]["model"] == "some-model"
    assert {"cpu", "threads", "versions"} <= written["machine"].keys()


def test_the_speed_of_wrong_numbers_is_an_error(tmp_path: Path) -> None:
    row = timing.comparison("wrong", "a row", times(9.0, 1.0), equal={OURS: False})
    with pytest.raises(SystemExit, match="wrong; these times mean nothing"):
        common.report("example", [row], arguments(tmp_path))


def test_a_missing_model_is_named_with_what_makes_it() -> None:
    with pytest.raises(SystemExit, match="make smollm2"):
        update.main(["--model", "./nowhere"])


def test_memory_has_a_bar_on_the_whole_process() -> None:
    runs = {
        TRL: [{"peak": 600, "update": 300}],
        OURS: [{"peak": 200, "update": 100}],
        memory.ALGORITHM: [{"peak": 250, "update": 125}],
    }
    peak, above, algorithm = memory.summary(runs)
    assert (peak["value"], peak["met"], above["value"], above["bar"]) == (3.0, True, 3.0, None)
    assert (algorithm["value"], algorithm["met"]) == (0.8, False)


def test_all_of_algorithm_1_is_what_the_whole_is(tiny_checkpoint: Path) -> None:
    """The model has all adapters of algorithm 1, and the reward model learns."""
    trainer = make_trainer(OURS, str(tiny_checkpoint))
    reward_model = memory.with_roles(trainer)
    assert set(trainer.model.peft_config) == {"default", "ref", "reward"}
    before = reward_model.token_scores([[5, 6, 7]])[0]
    reward_model.fit_steps([[5]], [[6, 7]], [[1]], [[1]], learning_rate=1e-2)
    assert not torch.equal(reward_model.token_scores([[5, 6, 7]])[0], before)


@pytest.mark.parametrize("silent", [0, 1])
def test_an_update_is_compared_with_equal_numbers(
    trainers, silent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two micro-batches of the 8 rows.
    monkeypatch.setattr(update, "MICRO_BATCH", 4)
    case = update.Case("tiny", "tiny", 1.0, prompt=12, longest=6, size=4, groups=2, silent=silent)
    row = update.compare(case, trainers, repeats=1)
    assert row["equal"] == {OURS: True} and row["value"] > 0 and row["useful_flops"] > 0
    rate = {
        "size": 2048,
        "flops_per_s": row["useful_flops"],
        "flops_per_wall_s": row["useful_flops"],
    }
    # With this rate, all useful work takes one second.
    cost = row["sides"][OURS]["cost"]["median"]
    assert update.limit(row, rate)["value"] == pytest.approx(1 / cost)


def test_prefix_grouper_computes_the_same(trainers, tiny_checkpoint: Path) -> None:
    pytest.importorskip("prefix_grouper", reason="the extra `bench` is not installed")
    peer = make_trainer(PEER, str(tiny_checkpoint))
    row = update.compare(SMALL, trainers | {PEER: peer}, repeats=1)
    assert row["equal"] == {OURS: True, PEER: True}


def test_numbers_that_differ_are_noticed(trainers) -> None:
    weight = first_adapter_weight(trainers[OURS])
    # Another adapter on one side only.
    with torch.no_grad():
        weight += 0.1
    row = update.compare(SMALL, trainers, repeats=1)
    # Other tests use the same trainers.
    with torch.no_grad():
        weight -= 0.1
    assert row["equal"] == {OURS: False}


@pytest.mark.parametrize("side", [TRL, OURS])
def test_rollouts_have_the_lengths_they_are_told(trainers, side: str) -> None:
    prompts = [[7, 8, 9]] * 4 + [[9, 10]] * 4
    lengths = [1, 8, 2, 2, 5, 3, 1, 4]
    completions = rollout.rollout(trainers[side], prompts, lengths)
    assert list(map(len, completions)) == lengths
    for ids in completions:
        assert ids[-1] in trainers[side].eos_token_ids


@pytest.mark.long
@pytest.mark.parametrize("name", hybrids.MODELS)
def test_hybrids_are_compared_with_equal_numbers(
    tiny_checkpoint: Path,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    small = hybrids.SIZES | {"hidden_size": 64, "intermediate_size": 64, "head_dim": 8}
    # Mamba's heads fill twice the hidden size.
    config, settings = hybrids.MODELS[name]
    fitting = settings | ({"mamba_d_head": 8} if name == "bamba" else {})
    monkeypatch.setattr(hybrids, "SIZES", small)
    monkeypatch.setitem(hybrids.MODELS, name, (config, fitting))
    monkeypatch.setattr(hybrids, "UPDATES", [SMALL])
    monkeypatch.setattr(hybrids, "ROLLOUT", update.Case("tiny", "tiny", prompt=12, longest=9))
    monkeypatch.setattr(update, "MICRO_BATCH", 8)
    flags = arguments(tmp_path, rows=hybrids.names())
    flags.model = str(tiny_checkpoint)
    rows = hybrids.measure(name, flags)
    assert [row["name"] for row in rows] == [f"{name} small", f"{name} tiny"]
    for row in rows:
        assert all(row["equal"].values()), row
    # Both sides would be equal as well if ours were TRL's way.
    assert "are off" not in caplog.text


@pytest.mark.parametrize("side", [TRL, OURS])
def test_a_step_moves_the_adapter(trainers, side: str) -> None:
    trainer = trainers[side]
    trainer.create_optimizer()
    weight = first_adapter_weight(trainer)
    before = weight.detach().clone()
    rows = [{"prompt": "1 + 1 = ", "answer": "2"}] * 8 + [{"prompt": "1 + 2 = ", "answer": "3"}] * 8
    step.step(trainer, rows, [1, 8, 2, 2, 5, 3, 1, 4] * 2)
    assert trainer._metrics["train"]["completions/mean_length"][-1] == pytest.approx(26 / 8)
    assert not torch.equal(weight, before)
    # Other tests use the same trainers.
    with torch.no_grad():
        weight.copy_(before)


def test_the_sweep_becomes_a_picture(tmp_path: Path) -> None:
    rows = []
    for letter, key in (("P", "prompt"), ("G", "size")):
        for x in (2, 4):
            rows.append({"name": f"{letter}{x}", key: x, "value": 2.0, "range": [1.9, 2.1]})
    record = {
        "rows": rows,
        "settings": {"model": "m", "threads": 1},
        "machine": {"accelerator": None, "cpu": "c", "versions": {"trl": "1"}},
    }
    plot.draw(record, tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 10_000


@pytest.mark.long
def test_scoring_compares_equal_values(monkeypatch: pytest.MonkeyPatch) -> None:
    # A short batch and a short timeout, so that the hanging completion costs a second.
    monkeypatch.setattr(scoring, "COUNT", 12)
    monkeypatch.setattr(scoring, "TIMEOUT", 1.0)
    math, hang, overhead, whole = scoring.compare(2, 1)
    assert all(math["equal"].values())
    assert hang["equal"]["others"]
    assert math["value"] > 0
    assert overhead["value"] > 0 and whole["value"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-g16", "tiny-g4-ckpt"])
def test_a_plan_foretells_the_memory_of_a_run(name: str) -> None:
    case = next(case for case in plan.CASES if case.name == name)
    arguments = argparse.Namespace(model="", threads=1)
    row = plan.case_row(case, [plan.run_case(case, arguments)])
    assert row["value"] == pytest.approx(1, abs=plan.BAR)
    assert row["met"]


def test_a_plan_that_is_off_is_a_missed_bar() -> None:
    case = plan.CASES[0]
    run = {"foretold": {"rollout": 100, "rest": 90}, "measured": {"rollout": 80, "rest": 70}}
    row = plan.case_row(case, [run])
    assert row["value"] == 100 / 80
    assert not row["met"]
    assert "1.25" in plan.markdown([row])
