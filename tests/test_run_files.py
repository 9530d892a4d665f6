"""Logs and printed lines of a run: what a disk that fails costs, and what torn lines cost."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.mounts import run_with_mounts

from grpo_hf import run_files
from grpo_hf.run_files import append_lines, read_lines, say, write_or_say, write_whole

# Fills a disk of 64 KiB while a log is appended to, frees it, and appends once more.
FULL_DISK = """
import os, sys
from pathlib import Path
from grpo_hf.run_files import append_lines, read_lines, write_or_say

here = Path(sys.argv[1])
log, card = here / "metrics.jsonl", here / "README.md"
write_or_say(card, "the card\\n")
filler = (here / "filler").open("wb", buffering=0)
try:
    while True:
        filler.write(bytes(1024))
except OSError:
    pass
written = [append_lines(log, ['{"step": %d, "text": "%s"}\\n' % (step, "x" * 1000)])
           for step in range(1, 8)]
write_or_say(card, "x" * 10000)
assert not all(written), written
assert len(read_lines(log)) == sum(written) if log.exists() else not any(written)
assert card.read_text() == "the card\\n" and not list(here.glob("*.partial"))
os.truncate(here / "filler", 0)
assert append_lines(log, ['{"step": 8}\\n'])
assert read_lines(log)[-1] == {"step": 8}
"""
DISK = "mount -t tmpfs -o size=64k none {}"


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    run_files.warn_once.cache_clear()
    return lambda: [record.getMessage() for record in caplog.records]


def test_a_disk_that_fills_costs_lines_and_leaves_none_torn(tmp_path: Path):
    done = run_with_mounts(DISK.format(tmp_path), FULL_DISK, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("metrics.jsonl cannot be written (No space left on device)") == 1
    assert done.stderr.count("README.md cannot be written (No space left on device)") == 1


def test_a_disk_that_is_full_is_said_once(tmp_path: Path, warnings):
    # Each write to this device fails as on a full disk.
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    assert not append_lines(tmp_path / "log.jsonl", ["{}\n"])
    assert not append_lines(tmp_path / "log.jsonl", ["{}\n"])
    (said,) = warnings()
    assert "log.jsonl cannot be written (No space left on device). The run goes on." in said


def test_a_folder_that_is_read_only_is_said_once(tmp_path: Path):
    code = """
import subprocess, sys
from pathlib import Path
from grpo_hf.run_files import append_lines, read_lines

log = Path(sys.argv[1]) / "log.jsonl"
assert append_lines(log, ["{}\\n"])
subprocess.run(["mount", "-o", "remount,ro", sys.argv[1]], check=True)
assert not append_lines(log, ["{}\\n"]) and not append_lines(log, ["{}\\n"])
assert read_lines(log) == [{}]
"""
    done = run_with_mounts(DISK.format(tmp_path), code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("log.jsonl cannot be written (Read-only file system)") == 1


def test_a_folder_that_vanished_is_made_again(tmp_path: Path, warnings):
    log = tmp_path / "run" / "log.jsonl"
    assert append_lines(log, ['{"step": 1}\n'])
    assert read_lines(log) == [{"step": 1}]
    (said,) = warnings()
    assert f"{tmp_path / 'run'} has vanished, and is made again" in said


@pytest.mark.parametrize(
    "torn", [b'{"step": 2, "rew', b'{"step": 2, "text": "\xc3', b"\0\0\0\0", b"7"]
)
def test_a_torn_line_is_left_out_and_the_next_begins_anew(tmp_path: Path, torn: bytes, warnings):
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"step": 1}\n' + torn)
    assert append_lines(log, ['{"step": 3, "text": "a\u2028b"}\n'])
    assert append_lines(log, ['{"step": 4}\n'])
    rows = read_lines(log)
    assert rows == [{"step": 1}, {"step": 3, "text": "a\u2028b"}, {"step": 4}]
    (said,) = warnings()
    assert f"{log} has torn lines, which are left out: number 2." in said


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path, warnings, monkeypatch):
    file = tmp_path / "card.md"
    write_whole(file, "first")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    write_or_say(file, "second")
    assert file.read_text() == "first" and os.listdir(tmp_path) == ["card.md"]
    assert "card.md cannot be written (No space left on device)" in warnings()[0]


def test_a_lone_surrogate_of_the_data_is_no_error(tmp_path: Path):
    assert append_lines(tmp_path / "log.jsonl", ['{"text": "\ud83d"}\n'])
    assert read_lines(tmp_path / "log.jsonl") == [{"text": "?"}]


def test_output_that_nobody_can_take_ends_nothing(monkeypatch, warnings):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        say("first")
        say("second")
        monkeypatch.undo()
        assert len(warnings()) == 1 and "The output cannot be written (No space" in warnings()[0]
        # Its buffer cannot be flushed.
        with pytest.raises(OSError):
            full.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", "0.5?0.1 | ?"), ("latin-1", "0.5±0.1 | ?"), ("utf-8", "0.5±0.1 | ┃")],
)
def test_what_a_locale_lacks_is_a_question_mark(monkeypatch, encoding: str, shown: str):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    say("0.5±0.1 | ┃")
    say("half a \ud83d")
    assert written.getvalue().decode(encoding).splitlines() == [shown, "half a ?"]


def test_a_reader_that_left_costs_no_exit_code():
    code = "from grpo_hf.run_files import say\nfor n in range(20000): say('line ' + str(n))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read().decode()
    assert process.wait(60) == 0
    assert said.count("Nobody reads the output any more.") == 1 and "Traceback" not in said
