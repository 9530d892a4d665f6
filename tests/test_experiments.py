"""The experiments of docs/results.md: commands, records, sentences, and the page of them."""

import doctest
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import experiments, experiments_page

ROOT = Path(__file__).parents[1]
NAMES = list(experiments_page.experiments())
SENTENCES = ("about", "found", "says")
# A number of a sentence, but not the number of a paper.
NUMBER = re.compile(r"(?<![\d.:])(?<!arXiv )\d+\.\d+(?!\d|\.\d)")

CHEAP = """
tiny:
  title: "The demo: as little as there can be"
  minutes: 1
  seeds: [42]
  commands:
    - >-
      python recipes/gsm8k.py --config recipes/gsm8k_tiny.yaml --cold_start_steps 1
      --max_steps 1 --eval_rows 4 --per_device_train_batch_size 8 --max_completion_length 4
      --logging_steps 1
  tables:
    - reader: comparison
      caption: What there is
      runs: {right: runs/gsm8k_tiny/demo}
  pictures:
    - {file: tiny.png, made: runs/gsm8k_tiny/demo/report/rewards.png, shows: the reward}
  about: One step.
  found: Nothing
  says: Nothing can be said of it.
"""


def record(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((experiments.RECORDS / f"{name}.json").read_text("utf-8"))
    return found


def numbers(cell: Any) -> Iterator[float]:
    """Yield each number of a record, however deep it lies."""
    if isinstance(cell, dict):
        cell = list(cell.values())
    if isinstance(cell, list):
        for each in cell:
            yield from numbers(each)
    elif isinstance(cell, int | float):
        yield cell


def test_the_page_is_that_of_the_records(tmp_path: Path) -> None:
    page = experiments_page.write_page(experiments.RECORDS, tmp_path)
    written = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert written == page.read_text(encoding="utf-8"), "python -m benchmarks.experiments --page"


@pytest.mark.parametrize("name", NAMES)
def test_a_number_of_a_sentence_is_in_the_record(name: str) -> None:
    experiment = experiments_page.experiments()[name]
    known = [abs(number) for number in numbers(record(name)["tables"])]
    quoted = experiment.get("quoted", [])
    said = [number for part in SENTENCES for number in NUMBER.findall(experiment[part])]
    for number in said:
        digits = len(number.partition(".")[2])
        assert any(round(each, digits) == float(number) for each in [*known, *quoted]), number
    # A quotation that no sentence has any more would let another number pass.
    assert set(quoted) <= set(map(float, said))


@pytest.mark.parametrize("name", NAMES)
def test_a_record_is_of_its_experiment(name: str) -> None:
    """The page's commands, which tests/test_commands.py checks, are those that `--run` runs."""
    experiment = experiments_page.experiments()[name]
    found = record(name)
    assert found["commands"] == experiment["commands"]
    assert found["seeds"] == experiment["seeds"]
    assert len(found["tables"]) == len(experiment["tables"])
    for table in found["tables"]:
        assert {len(row) for row in table["rows"]} == {len(table["columns"])}
    for asked in experiment["tables"]:
        assert asked["reader"] in experiments.READERS
    for picture in experiment.get("pictures", []):
        assert (ROOT / "docs" / picture["file"]).is_file()


@pytest.mark.parametrize("name", NAMES)
def test_every_command_can_be_started(name: str) -> None:
    data = ROOT / "no-such-data"
    for command in experiments_page.experiments()[name]["commands"]:
        words = experiments.words_of(command, data)
        assert Path(words[0]).is_file() or words[0] == "make"
        assert experiments.DATA not in " ".join(words)
        for word in words[1:]:
            if word.startswith("recipes/"):
                assert (ROOT / word).exists(), word


def test_every_experiment_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    experiments.main(["--list"])
    said = capsys.readouterr().out
    for name, experiment in experiments_page.experiments().items():
        (line,) = [line for line in said.splitlines() if line.startswith(f"│ {name} ")]
        assert f" {experiment['minutes']} " in line


@pytest.fixture
def cheap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the only experiment be one that takes seconds; return flags that write elsewhere."""
    file = tmp_path / "experiments.yaml"
    file.write_text(CHEAP, encoding="utf-8")
    monkeypatch.setattr(experiments_page, "EXPERIMENTS", file)
    folders = {"--runs": "runs", "--results": "records", "--docs": "docs"}
    return [word for flag, name in folders.items() for word in (flag, str(tmp_path / name))]


@pytest.mark.long
def test_an_experiment_runs_as_it_is_typed(
    tmp_path: Path,
    cheap: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    experiments.main(["--run", "tiny", *cheap])
    written = (tmp_path / "records" / "tiny.json").read_text(encoding="utf-8")
    found = json.loads(written)
    assert found["took"]["cpu"] > 0 and found["machine"]["threads"] == 1
    (row,) = found["tables"][0]["rows"]
    run = tmp_path / "runs" / "tiny" / "runs" / "gsm8k_tiny" / "demo"
    lines = (run / "evaluation.jsonl").read_text(encoding="utf-8").splitlines()
    right = [json.loads(line)["base"]["right"] for line in lines]
    assert row[:2] == ["right", 1] and (row[2]["right"], row[2]["total"]) == (sum(right), 4)
    assert str(tmp_path) not in written
    assert (tmp_path / "docs" / "tiny.png").stat().st_size > 1_000
    experiments.main(["--page", *cheap])
    page = (tmp_path / "docs" / "results.md").read_text(encoding="utf-8")
    assert "Nothing can be said of it." in page and f"Commit {found['machine']['commit']}" in page
    assert "\n\nWhat there is:\n\n|  | steps |" in page
    assert "[The demo: as little as there can be](#the-demo-as-little-as-there-can-be)" in page
    # The second call has nothing to run, and writes the same.
    monkeypatch.setattr(experiments, "run_alone", lambda *_: pytest.fail("it ran again"))
    capsys.readouterr()
    experiments.main(["--run", "tiny", *cheap])
    assert "ended before, in " in capsys.readouterr().out
    assert (tmp_path / "records" / "tiny.json").read_text(encoding="utf-8") == written
    # Of a command that was stopped on its way, the last part is no measure.
    (tmp_path / "runs" / "tiny" / "took-0.json").unlink()
    monkeypatch.setattr(experiments, "run_alone", lambda *_: {"wall": 1.0, "cpu": 1.0})
    experiments.main(["--run", "tiny", *cheap])
    assert "took" not in json.loads((tmp_path / "records" / "tiny.json").read_text("utf-8"))


def test_what_fails_or_is_missing_is_said(tmp_path: Path, cheap: list[str]) -> None:
    with pytest.raises(SystemExit, match="tiny has no record; `--run` makes it"):
        experiments.main(["--page", *cheap])
    file = experiments_page.EXPERIMENTS
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    settings["tiny"] |= {"commands": ["python FOLDER/missing.py"], "needs": "a missing program"}
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    with pytest.raises(SystemExit, match="--data names the folder: a missing program"):
        experiments.main(["--run", "tiny", *cheap])
    with pytest.raises(SystemExit, match=r"missing\.py` ended with 2"):
        experiments.main(["--run", "tiny", "--data", str(tmp_path), *cheap])
    assert not (tmp_path / "records").exists()
    (tmp_path / "records").mkdir()
    for name in ("tiny", "other"):
        (tmp_path / "records" / f"{name}.json").write_text("{}", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"other has no entry in experiments.yaml"):
        experiments.main(["--page", *cheap])
    with pytest.raises(SystemExit, match="--run NAME, --list or --page"):
        experiments.main([])


def test_texts_of_the_page() -> None:
    assert doctest.testmod(experiments_page).failed == 0
    command = "python a.py" + " --flag value" * 12
    lines = experiments_page.command_lines(command).split(" \\\n")
    assert " ".join(line.strip() for line in lines) == command
    assert len(lines) == 2 and all(len(line) <= 118 for line in lines)
    assert lines[1].startswith("        --flag value")
    # Code stays on a line, and a line is a paragraph.
    text = f"{'word ' * 23}`#### 10` end\nnext"
    assert experiments_page.paragraphs(text).splitlines()[1:] == ["`#### 10` end", "", "next"]
    assert experiments_page.origin({"machine": {"commit": None}, "seeds": [0, 1]}) == (
        "The commit was not noted; seeds 0, 1."
    )
