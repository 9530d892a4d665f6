"""Test the check for GPUs on a CPU: parts on tiny models, limits, failures, interruptions."""

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.varlen_reference import ReferenceOperator
from support.vllm import vllm_installed

from benchmarks import gpu_check, gpu_correctness, gpu_models, gpu_parts, gpu_rows
from benchmarks.gpu_correctness import AUTOCAST, FP32, Comparison
from benchmarks.gpu_rows import Work
from grpo_hf.rollout import vllm_engine

# Programs in the place of parts: one fails, one hangs, one is well; each has a row before. They
# wait for their turn, as parts do.
ROW = (
    "import json, sys; sys.stdin.readline()\n"
    "print(json.dumps({'part': '%s', **%r}), file=open(sys.argv[1], 'a'), flush=True)"
)
MEET = """
import pathlib, time
folder = pathlib.Path(sys.argv[1]).parent
(folder / '%s').touch()
while not (folder / '%s').exists():
    time.sleep(0.01)
"""
ENDS = {
    "compile": MEET % ("compile", "plan"),
    "plan": MEET % ("plan", "compile"),
    "vllm": "pass",
    "kernel": "raise SystemExit('the kernel is lost')",
    "update": "import time; time.sleep(60)",
    "rollout": "pass",
    "step": "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)",
}
WELL = gpu_rows.verdict("a row", 1.0, 2.0, note="of a test")


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path, "cpu", "tiny")


class InHalfPrecision(ReferenceOperator):
    """It computes in float32 and rounds what it returns, as the kernel does."""

    def forward(self, states, call, scaling):
        output, normaliser = super().forward([each.float() for each in states], call, scaling)
        return output.to(states[0].dtype), normaliser

    def backward(self, gradient, states, results, call, scaling):
        precise = [each.float() for each in states]
        results = [each.float() for each in results]
        grads = super().backward(gradient.float(), precise, results, call, scaling)
        return tuple(each.to(gradient.dtype) for each in grads)


def by_programs(self: gpu_check.Check, part: str) -> list[str]:
    code = f"{ROW % (part, WELL)}\n{ENDS[part]}"
    return [sys.executable, "-c", code, str(gpu_check.rows_file(self.folder, part))]


def checked(parts: list[str], file: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, int]:
    """Return the JSON file and the exit code of a check whose parts are programs of this test."""
    monkeypatch.setattr(gpu_check.Check, "command", by_programs)
    flags = ["--device", "cpu", "--size", "tiny", "--json", str(file), "--minutes", "0.5"]
    code = 0
    try:
        gpu_check.main([*flags, "--parts", *parts])
    except SystemExit as error:
        code = int(error.code or 0)
    return json.loads(file.read_text()), code


def test_all_parts_have_eight_minutes_together() -> None:
    assert gpu_check.MINUTES <= 8
    assert set(gpu_check.PARTS) == set(gpu_parts.PARTS | gpu_correctness.PARTS)


def test_parts_see_one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = gpu_check.Check(Namespace(device="cuda", size="full"), tmp_path)
    for given, seen in (("2,3", "2"), (None, "0")):
        if given is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        assert check.environment("update")["CUDA_VISIBLE_DEVICES"] == seen
        assert "CUDA_VISIBLE_DEVICES" not in check.environment("two GPUs")


@pytest.mark.long
def test_a_failure_and_a_hang_end_their_part_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_check, "SECONDS_TOGETHER", 40)
    found, code = checked(["kernel", "update", "rollout"], tmp_path / "x.json", monkeypatch)
    seen = [(row["part"], row["name"], row["status"]) for row in found["rows"]]
    assert seen == [
        ("kernel", "a row", "met"),
        ("kernel", "the part", "failed"),
        ("update", "a row", "met"),
        ("update", "the part", "failed"),
        ("rollout", "a row", "met"),
    ]
    assert code == 1 and found["finished"]
    assert "the kernel is lost" in found["logs"]["kernel"]
    output = capsys.readouterr()
    assert "it ran past its" in output.out and "the kernel is lost" in output.out
    assert "kernel: the part; update: the part" in output.err


def test_all_well_is_exit_code_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, code = checked(["rollout"], tmp_path / "x.json", monkeypatch)
    assert code == 0 and found["finished"] and len(found["rows"]) == 1


def test_parts_that_measure_no_time_run_beside_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check.Check, "beside", lambda _: 2)
    # Each of the two waits for the other.
    found, code = checked(["compile", "plan"], tmp_path / "x.json", monkeypatch)
    assert code == 0 and [row["part"] for row in found["rows"]] == ["compile", "plan"]


def test_the_file_keeps_the_parts_of_earlier_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.json"
    checked(["vllm"], file, monkeypatch)
    found, _ = checked(["rollout"], file, monkeypatch)
    assert [row["part"] for row in found["rows"]] == ["rollout", "vllm"]
    assert found["seconds"].keys() == found["commits"].keys() == {"rollout", "vllm"}
    # Of a file that does not say how long an earlier part took, the time of this run is told.
    found["seconds"]["vllm"] = None
    file.write_text(json.dumps(found))
    capsys.readouterr()
    found, _ = checked(["rollout"], file, monkeypatch)
    assert [row["part"] for row in found["rows"]] == ["rollout", "vllm"]
    assert f"after {found['seconds']['rollout']:.0f} s" in capsys.readouterr().out


def test_a_word_names_all_parts_that_begin_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(gpu_check.parts_of("correctness")) == len(gpu_models.FAMILIES) + 1
    assert gpu_check.parts_of("two GPUs") == ("two GPUs",)
    with pytest.raises(SystemExit):
        gpu_check.main(["--parts", "correct"])
    assert "no part is called 'correct'" in capsys.readouterr().err


def test_an_interrupted_check_has_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found, code = checked(["rollout", "step", "vllm"], tmp_path / "x.json", monkeypatch)
    assert [row["part"] for row in found["rows"]] == ["rollout", "step"]
    assert code == 1 and not found["finished"]
    assert "gpu-check, interrupted" in capsys.readouterr().out


def test_without_a_gpu_it_says_how_to_try_it() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit, match="--device cpu --size tiny"):
        gpu_check.main([])


@pytest.mark.long
def test_the_command_itself_on_a_cpu(tmp_path: Path) -> None:
    flags = ["--device", "cpu", "--size", "tiny", "--json", str(tmp_path / "x.json")]
    # This machine may be busy.
    gpu_check.main([*flags, "--minutes", "60", "--parts", "environment"])
    found = json.loads((tmp_path / "x.json").read_text())
    assert [row["name"] for row in found["rows"]] == ["processor"]
    assert {"cpu", "commit", "versions"} <= found["machine"].keys()


@pytest.mark.parametrize("family", [*gpu_models.FAMILIES, gpu_models.LARGE])
def test_shapes_are_the_published_ones(family: str) -> None:
    config = gpu_models.config_of(family, gpu_models.FULL)
    with torch.device("meta"):
        model = gpu_models.AutoModelForCausalLM.from_config(config)
    size = sum(weight.numel() for weight in model.parameters()) / 1e9
    named = float(family.rpartition("-")[2].removesuffix("B"))
    assert size == pytest.approx(named, rel=0.25) and 0.4 < size < 1.6
    # The tiny ones have the same kinds of layers.
    tiny = gpu_models.config_of(family, gpu_models.TINY)
    assert type(tiny) is type(config)
    kinds = [set(getattr(each, "layer_types", None) or ()) for each in (tiny, config)]
    assert kinds[0] == kinds[1]


def test_the_kernel_s_rows(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [row["status"] for row in gpu_parts.kernel(work)] == ["left out"]
    rows = list(gpu_parts.kernel(work, InHalfPrecision()))
    assert len(rows) == 2 * len(gpu_parts.HEADS)
    assert {row["status"] for row in rows} == {"met"}
    monkeypatch.setattr(InHalfPrecision, "forward", lambda *_: 1 / 0)
    rows = list(gpu_parts.kernel(work, InHalfPrecision()))
    assert {row["status"] for row in rows} == {"failed"}


@pytest.mark.long
@pytest.mark.parametrize("mode", [FP32, AUTOCAST], ids=lambda mode: mode.name)
def test_both_sides_learn_the_same_and_a_difference_is_found(
    work: Work, mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = Comparison(work, "Gemma-3-1B")
    row = comparison.row(mode)
    assert row["status"] == "met", row
    sides = []

    def with_another_token(config: Any, device: str, **padded: bool) -> Any:
        batch = original(config, device, **padded)
        sides.append(1)
        # The second one is ours.
        if len(sides) == 2:
            batch["prompt_ids"][0, -2] += 1
        return batch

    original = gpu_correctness.batch_for
    monkeypatch.setattr(gpu_correctness, "batch_for", with_another_token)
    row = comparison.row(mode)
    assert row["status"] == "missed", row


def test_windows_are_windows() -> None:
    for size in ("full", "tiny"):
        changes = gpu_correctness.windows(size).changes
        config = gpu_models.config_of(gpu_models.SMALL, size, **changes)
        assert set(config.layer_types) == {"sliding_attention"}
        batch = gpu_correctness.batch_for(config, "cpu")
        assert batch["prompt_ids"].shape[1] > config.sliding_window


@pytest.mark.long
def test_a_base_in_4_bits(work: Work) -> None:
    precise, half = gpu_correctness.four_bit(work)
    assert precise["status"] == "met", precise
    assert half["status"] == "left out"


@pytest.mark.long
def test_benchmarks_beside_trl(work: Work) -> None:
    rows = [*gpu_parts.updates(work), *gpu_parts.rollouts(work)]
    assert [row["status"] for row in rows] == ["measured", "measured", "met"], rows
    assert all(row["value"] > 0 and "grpo-hf" in row["note"] for row in rows[:2])


def test_benchmarks_have_bars_on_whole_models(tmp_path: Path) -> None:
    whole = Work(tmp_path, "cuda", "full")
    row = {"name": "p", "title": "t", "value": 0.9, "sides": {}}
    assert gpu_parts.beside_trl(row, whole)["status"] == "missed"
    assert gpu_parts.beside_trl(row | {"value": 1.1}, whole)["status"] == "met"
    # In bf16 the numbers of random weights are farther apart, but not those of other work.
    assert gpu_parts._is_near({"gradient": 0.08, "reference": 0.3})
    assert not gpu_parts._is_near({"gradient": 0.9, "reference": 0.3})
    assert not gpu_parts._is_near({"gradient": float("nan")})
    wrong = gpu_parts.beside_trl(row | {"equal": {"grpo-hf": False}}, whole)
    assert wrong["status"] == "failed" and wrong["status"] in gpu_check.BAD


def test_what_is_not_installed_is_left_out(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_parts, "find_spec", lambda _: None)
    for part in ("vllm", "unsloth"):
        (row,) = gpu_parts.PARTS[part](work)
        assert row["status"] == "left out" and "is not installed" in row["note"]
    one_gpu = Namespace(device_count=lambda: 1)
    monkeypatch.setattr(gpu_parts.torch, "cuda", one_gpu)
    (row,) = gpu_parts.two_processes(Work(work.folder, "cuda", "full"))
    assert row["note"] == "this machine has 1 GPU"


@pytest.mark.long
def test_vllm_by_adapter(work: Work) -> None:
    with vllm_installed():
        try:
            rows = list(gpu_parts.vllm_by_adapter(work))
        finally:
            vllm_engine.close_engines()
    assert [row["status"] for row in rows] == ["met", "measured", "measured"], rows
    assert "2 steps; base unchanged" in rows[0]["note"]


@pytest.mark.slow
def test_every_part_of_the_command(tmp_path: Path) -> None:
    flags = ["--device", "cpu", "--size", "tiny", "--json", str(tmp_path / "x.json")]
    gpu_check.main([*flags, "--minutes", "60"])
    found = json.loads((tmp_path / "x.json").read_text())
    assert {row["part"] for row in found["rows"]} == set(gpu_check.PARTS)
