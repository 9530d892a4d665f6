"""The sweeps over one setting: which runs are made, what is written down, and the page of it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import sweeps, sweeps_page

# So many of ten held-out problems are right after training at each value.
RIGHT = {"5e-4": 6, "2e-3": 4}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Replace training by a run folder with known figures; return the flags of the runs made."""
    made: list[list[str]] = []

    def train(recipe: Path, run: Path, flags: Sequence[str], threads: int) -> Any:
        made.append(list(flags))
        run.mkdir(parents=True)
        steps = []
        for step in range(6):
            logged = {"reward": step / 10, "kl": step, "completions/mean_length": 9.0}
            if "--beta" in flags and flags[flags.index("--beta") + 1] == "0":
                del logged["kl"]
            steps.append(logged)
        lines = [json.dumps(step) for step in [*steps, {"train_runtime": 12.0}]]
        (run / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        rate = flags[flags.index("--learning_rate") + 1] if "--learning_rate" in flags else "5e-4"
        rows = []
        for problem in range(10):
            right = {"base": problem < 2, "adapter": problem < RIGHT[rate]}
            rows.append(json.dumps({side: {"right": value} for side, value in right.items()}))
        (run / "evaluation.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
        return {"wall": 13.0, "cpu": 12.0}

    monkeypatch.setattr(sweeps, "train_alone", train)
    return made


def run(tmp_path: Path, *given: str) -> None:
    folders = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "records")]
    sweeps.main([*given, *folders])


def test_a_sweep_is_written_down(tmp_path: Path, trained: list[list[str]]) -> None:
    given = ["--setting", "learning_rate", "--values", "5e-4", "2e-3", "--seeds", "0", "1"]
    run(tmp_path, *given)
    record = json.loads((tmp_path / "records" / "demo-learning_rate.json").read_text())
    assert record["usual"] == 5e-4 and record["task"] == "demo"
    assert record["command"] == "python -m benchmarks.sweeps --task demo " + " ".join(given)
    first, second = record["values"]
    assert [each["seed"] for each in first["runs"]] == [0, 1]
    assert [each["adapter"]["value"] for each in first["runs"]] == [0.6, 0.6]
    assert [each["difference"]["value"] for each in second["runs"]] == pytest.approx([0.2, 0.2])
    assert first["runs"][0]["curves"]["kl"] == [0, 1, 2, 3, 4, 5]
    assert [flags[flags.index("--seed") + 1] for flags in trained] == ["0", "1", "0", "1"]
    assert str(tmp_path) not in json.dumps(record)


def test_sweeps_share_the_runs_of_the_recipe_as_it_is(
    tmp_path: Path, trained: list[list[str]]
) -> None:
    run(tmp_path, "--setting", "learning_rate", "--values", "5e-4", "--seeds", "0")
    run(tmp_path, "--setting", "lora_r", "--values", "16", "4", "--seeds", "0")
    # The second rank only.
    assert len(trained) == 2
    run(tmp_path, "--setting", "lora_r", "--values", "16", "--seeds", "0", "--recipe", "beta=0.1")
    assert len(trained) == 3 and trained[-1][trained[-1].index("--beta") + 1] == "0.1"


def test_what_the_recipe_leaves_open_is_its_default(
    tmp_path: Path, trained: list[list[str]]
) -> None:
    values = ["false", "true", "true,max_steps=20"]
    run(tmp_path, "--setting", "dynamic_sampling", "--values", *values, "--seeds", "0")
    record = json.loads((tmp_path / "records" / "demo-dynamic_sampling.json").read_text())
    assert record["usual"] is False
    assert (tmp_path / "runs" / "demo" / "usual-0").is_dir() and len(trained) == 3
    assert "--max_steps" not in trained[1]
    assert trained[2][-2:] == ["--max_steps", "20"]
    assert trained[2][trained[2].index("--dynamic_sampling") + 1] == "true"
    with pytest.raises(SystemExit, match="learning_rat is no setting"):
        run(tmp_path, "--setting", "learning_rat", "--values", "1")


def test_the_page_is_made_of_the_records(
    tmp_path: Path, trained: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, "--setting", "learning_rate", "--values", "5e-4", "2e-3", "--seeds", "0", "1")
    sentences = tmp_path / "sentences.yaml"
    sentences.write_text("{}", encoding="utf-8")
    monkeypatch.setattr(sweeps_page, "SENTENCES", sentences)
    with pytest.raises(SystemExit, match="no sentence for demo-learning_rate"):
        sweeps_page.write_page(tmp_path / "records", tmp_path)
    sentences.write_text("demo-learning_rate: The smaller one is better.", encoding="utf-8")
    page = sweeps_page.write_page(tmp_path / "records", tmp_path).read_text(encoding="utf-8")
    assert "The smaller one is better." in page
    # KL at the end: the mean of the last five steps.
    assert "| 5e-4 | 0.200 | 0.600 | +0.400 | 3.000 | 12 | +0.400, +0.400 |" in page
    assert (tmp_path / "sweep_demo-learning_rate.png").stat().st_size > 5_000
    with pytest.raises(SystemExit, match="holds no record"):
        sweeps_page.write_page(tmp_path / "empty", tmp_path)


def test_a_run_without_a_kl_term_logs_none(
    tmp_path: Path, trained: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, "--setting", "beta", "--values", "0", "0.04", "--seeds", "0")
    sentences = tmp_path / "sentences.yaml"
    sentences.write_text("demo-beta: None is best.", encoding="utf-8")
    monkeypatch.setattr(sweeps_page, "SENTENCES", sentences)
    page = sweeps_page.write_page(tmp_path / "records", tmp_path).read_text(encoding="utf-8")
    assert "| 0 | 0.200 | 0.600 | +0.400 | not logged | 12 |" in page
    assert "| 0.04 | 0.200 | 0.600 | +0.400 | 3.000 | 12 |" in page


def test_every_record_has_its_sentence() -> None:
    names: dict[str, Any] = yaml.safe_load(sweeps_page.SENTENCES.read_text(encoding="utf-8"))
    assert {file.stem for file in sweeps.SWEEPS.glob("*.json")} == set(names)
    assert all(names.values())


def test_what_is_missing_is_said() -> None:
    with pytest.raises(SystemExit, match="--setting names a key of a recipe"):
        sweeps.main(["--task", "demo"])
