"""The process that scores: every way to fail costs one completion, and nothing is left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import TrainerState

from grpo_hf import reward_settings
from grpo_hf.scoring.outcomes import Outcome
from grpo_hf.scoring.registry import load_reward
from grpo_hf.scoring.run_rewards import isolate
from grpo_hf.scoring.scored_reward import ScoredReward
from grpo_hf.scoring.worker_client import CannotTravelError, pack

FAULTS = """
import ctypes, os, signal, time

from grpo_hf import reward_settings

@reward_settings(batched=False, in_process=False)
def faulty(completions, **columns):
    (text,) = completions
    kind, _, rest = text.partition(" ")
    if kind == "raise": raise ValueError("no")
    if kind == "hang":
        while True: pass
    if kind == "sleep": time.sleep(60)
    if kind == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)
    if kind == "segfault": ctypes.string_at(0)
    if kind == "exit": os._exit(5)
    if kind == "leave": raise SystemExit("bye")
    if kind == "swell": return [float(len(bytearray(64 * 2**30)))]
    if kind == "nan": return [float("nan")]
    if kind == "text": return ["1.0"]
    if kind == "short": return []
    if kind == "loud": print("x" * 1000)
    return [float(len(rest))]
"""


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScoredReward]:
    file = tmp_path_factory.mktemp("rewards") / "faults.py"
    file.write_text(FAULTS)
    entry = ScoredReward(load_reward(f"{file}:faulty"))
    process = isolate([entry], workers=2, timeout=0.5)
    assert process is not None
    yield entry
    process.close()


def reasons(outcomes: list[Outcome]) -> list[str | None]:
    return [outcome.failure.reason if outcome.failure else None for outcome in outcomes]


@pytest.mark.parametrize(
    ("fault", "reason", "said"),
    [
        ("raise", "exception", "ValueError: no"),
        ("leave", "exception", "SystemExit: bye"),
        ("hang", "timeout", "more than 0.5 s"),
        ("sleep", "timeout", "more than 0.5 s"),
        ("deaf", "timeout", "more than 0.5 s"),
        ("segfault", "killed", "SIGSEGV"),
        ("exit", "killed", "exit code 5"),
        ("swell", "memory", "more memory than"),
        ("nan", "not finite", "returned nan"),
        ("text", "wrong type", "'1.0' (str)"),
        ("short", "wrong length", "0 values for 1"),
    ],
)
def test_a_fault_costs_its_own_completion(
    faulty: ScoredReward, fault: str, reason: str, said: str
) -> None:
    texts = ["good x", fault, "good xyz", "good"]
    outcomes = faulty.score(texts, {})
    assert reasons(outcomes) == [None, reason, None, None]
    assert said in outcomes[1].failure.detail
    assert [outcome.value for outcome in outcomes] == [1.0, None, 3.0, 0.0]


@pytest.mark.long
def test_a_reward_that_imports_when_it_is_called_is_told_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_to_import.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "mine.py"
    file.write_text(
        "from grpo_hf import reward_settings\n"
        "@reward_settings(batched=False, in_process=False)\n"
        "def late(completions, **columns):\n"
        "    import json, slow_to_import\n"
        "    return [1.0] * len(completions)\n"
    )
    entry = ScoredReward(load_reward(f"{file}:late"))
    process = isolate([entry], workers=1, timeout=0.5)
    assert process is not None
    (outcome,) = entry.score(["x"], {})
    process.close()
    assert outcome.failure.reason == "timeout"
    # json is there in every worker.
    assert outcome.failure.detail.startswith("it took more than 0.5 s. It imports slow_to_import ")
    assert "imports=('slow_to_import',)" in outcome.failure.detail
    assert "--reward_timeout" in outcome.failure.detail


def test_the_traceback_names_file_and_line(faulty: ScoredReward) -> None:
    (outcome,) = faulty.score(["raise"], {})
    assert "faults.py" in outcome.failure.detail
    assert 'raise ValueError("no")' in outcome.failure.detail


@pytest.mark.long
def test_time_is_what_the_time_outs_explain(faulty: ScoredReward) -> None:
    start = time.monotonic()
    outcomes = faulty.score(["hang"] * 4 + ["good"] * 40, {})
    assert reasons(outcomes).count("timeout") == 4
    assert time.monotonic() - start < 4 * 0.5 / 2 + 3  # on two workers; 3 s for a busy machine


def test_the_same_for_any_number_of_workers() -> None:
    texts = [f"good {'x' * n}" if n % 5 else "raise" for n in range(30)]
    entries = []
    for workers in (0, 1, 3):
        entry = ScoredReward(load_reward(_faulty_by_value()))
        process = isolate([entry], workers=workers, timeout=5)
        assert (process is None) == (workers == 0)
        outcomes = entry.score(texts, {})
        values = [outcome.value for outcome in outcomes]
        entries.append(list(zip(values, reasons(outcomes), strict=True)))
        if process is not None:
            process.close()
    assert entries[0] == entries[1] == entries[2]


def _faulty_by_value() -> Callable[..., Any]:
    offset = 0.5  # a closure, which travels by value

    @reward_settings(batched=False)
    def faulty(completions: list[str], **columns: Any) -> list[float]:
        if completions == ["raise"]:
            raise ValueError
        return [len(text) + offset for text in completions]

    return faulty


@pytest.mark.long
def test_functions_of_scripts_partials_and_objects_travel() -> None:
    @reward_settings(in_process=False)
    class Scaled:
        def __init__(self, scale: float) -> None:
            self.scale = scale

        def __call__(self, completions: list[str], **columns: Any) -> list[float]:
            return [self.scale * len(text) for text in completions]

    def scaled(scale: float, completions: list[str], **columns: Any) -> list[float]:
        return [scale * len(text) for text in completions]

    entries = [
        ScoredReward(load_reward(f))
        for f in (Scaled(2.0), partial(scaled, 3.0), lambda completions: [9.0 for _ in completions])
    ]
    process = isolate(entries, workers=1, timeout=5)
    assert process is not None
    assert [entry(completions=["ab", "c"]) for entry in entries] == [
        [4.0, 2.0],
        [6.0, 3.0],
        [9.0, 9.0],
    ]
    process.close()


def test_what_cannot_travel_stays_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    lock = threading.Lock()

    def locked(completions: list[str], **columns: Any) -> list[float]:
        with lock:
            return [1.0 for _ in completions]

    entry = ScoredReward(load_reward(locked))
    assert isolate([entry], workers=2, timeout=5) is None
    assert entry(completions=["a"]) == [1.0]
    assert "'locked' is called in the trainer's process" in caplog.text
    assert "it refers to lock, a lock, which can change" in caplog.text
    with pytest.raises(CannotTravelError):
        pack(load_reward(locked))


def test_columns_that_cannot_travel_are_scored_here_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def reads(completions: list[str], locks: Any) -> list[float]:
        return [1.0 for _ in locks]

    entry = ScoredReward(load_reward(reads))
    process = isolate([entry], workers=1, timeout=5)
    assert entry(completions=["a"], locks=[threading.Lock()]) == [1.0]
    assert "what it is called with cannot be sent" in caplog.text
    assert process is not None
    process.close()


def test_batched_rewards_get_one_call() -> None:
    @reward_settings(batched=True)
    def rank(completions: list[str], **columns: Any) -> list[float]:
        return [float(sorted(completions).index(text)) for text in completions]

    entry = ScoredReward(load_reward(rank))
    process = isolate([entry], workers=2, timeout=5)
    assert entry(completions=["c", "a", "b"]) == [2.0, 0.0, 1.0]
    assert process is not None
    process.close()


@pytest.mark.long
def test_async_rewards_wait_together_and_one_that_blocks_is_found() -> None:
    @reward_settings(batched=False)
    async def waits(completions: list[str], **columns: Any) -> list[float]:
        import asyncio  # where this runs

        await asyncio.sleep(0.2)
        if completions == ["block"]:
            time.sleep(60)
        return [float(len(completions[0]))]

    entry = ScoredReward(load_reward(waits))
    process = isolate([entry], workers=2, timeout=1.0)
    assert entry(completions=["a"]) == [1.0]
    start = time.monotonic()
    assert entry(completions=["ab"] * 32) == [2.0] * 32
    assert time.monotonic() - start < 4  # 6.4 s one after the other
    assert entry(completions=["a", "block", "abc"]) == [1.0, None, 3.0]
    assert process is not None
    process.close()


@pytest.mark.long
def test_what_they_log_comes_back() -> None:
    def talks(
        completions: list[str], log_extra: Any, log_metric: Any, trainer_state: Any
    ) -> list[float]:
        log_extra("length", [len(text) for text in completions])
        log_metric("step", trainer_state.global_step)
        log_metric("loss", trainer_state.log_history[0]["loss"])
        return [1.0 for _ in completions]

    entry = ScoredReward(load_reward(talks))
    process = isolate([entry], workers=2, timeout=5)
    columns, metrics = {}, {}
    state = TrainerState(global_step=7, log_history=[{"loss": 0.5}])
    entry(
        completions=["a", "bb"],
        trainer_state=state,
        log_extra=columns.__setitem__,
        log_metric=metrics.__setitem__,
    )
    assert (columns, metrics) == ({"length": [1, 2]}, {"step": 7.0, "loss": 0.5})
    assert process is not None
    process.close()


@pytest.mark.long
def test_memory_that_others_leaked_is_not_a_completion_s_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @reward_settings(batched=False, in_process=False)
    def leaks(completions: list[str], **columns: Any) -> list[float]:
        import builtins

        vars(builtins).setdefault("hoard", []).append(bytearray(300 * 2**20))
        return [1.0]

    # The least that a worker has: 2 GiB.
    monkeypatch.setattr("grpo_hf.scoring.worker_client._MEMORY_SHARE", 0.0)
    entry = ScoredReward(load_reward(leaks))
    process = isolate([entry], workers=1, timeout=30)
    assert entry(completions=["x"] * 12) == [1.0] * 12  # 3.5 GiB in all
    assert process is not None
    process.close()


def test_the_process_starts_again_when_it_has_died() -> None:
    def kills(completions: list[str], **columns: Any) -> list[float]:
        if completions == ["kill"]:
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(5)
        return [1.0]

    entry = ScoredReward(load_reward(kills))
    process = isolate([entry], workers=1, timeout=10)
    assert process is not None
    outcomes = entry.score(["a", "kill"], {})
    assert [outcome.value for outcome in outcomes] == [None, None]
    assert "died with it, twice" in outcomes[0].failure.detail
    assert entry(completions=["a"]) == [1.0]
    process.close()


@pytest.mark.long
def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """Neither by a trainer that ends, nor by one that is killed while a reward hangs."""
    program = """
import sys, time, threading
from grpo_hf import reward_settings
from grpo_hf.scoring.registry import load_reward
from grpo_hf.scoring.scored_reward import ScoredReward
from grpo_hf.scoring.run_rewards import isolate
@reward_settings(batched=False)
def hangs(completions, **columns):
    if completions == ["hang"]: time.sleep(600)
    return [1.0]
entry = ScoredReward(load_reward(hangs))
process = isolate([entry], workers=2, timeout=600)
entry(completions=["a", "b"])
if sys.argv[1] == "hang":
    print("ready", flush=True)
    entry(completions=["hang", "hang"])
"""
    for how in ("ends", "hang"):
        child = subprocess.Popen(
            [sys.executable, "-c", program, how], stdout=subprocess.PIPE, text=True
        )
        family: list[psutil.Process] = []
        if how == "hang":
            assert child.stdout is not None and child.stdout.readline() == "ready\n"
            time.sleep(0.5)
            family = psutil.Process(child.pid).children(recursive=True)
            assert len(family) == 4  # the server, its workers and the one for whole calls
            child.kill()
        child.wait(timeout=60)
        _, alive = psutil.wait_procs(family, timeout=20)
        assert not alive


@pytest.mark.long
def test_file_handles_do_not_pile_up() -> None:
    def count(completions: list[str], **columns: Any) -> list[float]:
        return [1.0]

    here = psutil.Process()
    children = here.children()
    for turn in range(6):
        entry = ScoredReward(load_reward(count))
        process = isolate([entry], workers=1, timeout=5)
        entry(completions=["a"])
        assert process is not None
        process.close()
        if turn == 1:
            before = here.num_fds()
    assert here.num_fds() <= before + 1
    assert here.children() == children


def test_a_trivial_reward_costs_less_than_half_a_millisecond() -> None:
    def trivial(completions: list[str], **columns: Any) -> list[float]:
        return [1.0]

    entry = ScoredReward(load_reward(trivial))
    process = isolate([entry], workers=2, timeout=5)
    entry(completions=["warm"] * 8)
    costs = []
    for _ in range(5):
        start = time.perf_counter()
        entry(completions=["a text of some length " * 20] * 512, answer=["42"] * 512)
        costs.append((time.perf_counter() - start) / 512)
    assert min(costs) < 0.5e-3
    assert process is not None
    process.close()


def test_signals_without_a_name_are_a_reason_too(faulty: ScoredReward) -> None:
    def real_time(completions: list[str], **columns: Any) -> list[float]:
        if completions == ["kill"]:
            os.kill(os.getpid(), 36)
        return [1.0]

    entry = ScoredReward(load_reward(real_time))
    process = isolate([entry], workers=1, timeout=10)
    outcomes = entry.score(["a", "kill", "b"], {})
    assert reasons(outcomes) == [None, "killed", None]
    assert "signal 36" in outcomes[1].failure.detail
    assert process is not None
    process.close()


@pytest.mark.long
def test_what_a_late_reward_has_started_ends_with_it() -> None:
    def starts(completions: list[str], **columns: Any) -> list[float]:
        subprocess.run(["sleep", "7777"])
        return [1.0]

    entry = ScoredReward(load_reward(starts))
    process = isolate([entry], workers=1, timeout=0.5)
    assert reasons(entry.score(["a"], {})) == ["timeout"]
    time.sleep(0.5)
    assert not [
        p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "7777"]
    ]
    assert process is not None
    process.close()


def test_odd_values_to_log_become_text() -> None:
    class Odd(Exception):
        def __init__(self, a: int, b: int) -> None:
            super().__init__(a)  # which cannot be unpickled

    def talks(completions: list[str], log_extra: Any) -> list[float]:
        log_extra("why", [Odd(1, 2), [Odd(3, 4)]])
        log_extra("plain", [("a", 1), {"b": [0.5, None]}])
        return [1.0, 1.0]

    entry = ScoredReward(load_reward(talks))
    process = isolate([entry], workers=1, timeout=10)
    columns: dict[str, Any] = {}
    assert entry(completions=["a", "b"], log_extra=columns.__setitem__) == [1.0, 1.0]
    assert columns == {"why": ["1", "[Odd(3)]"], "plain": [("a", 1), {"b": [0.5, None]}]}
    assert process is not None
    process.close()


def test_what_only_this_process_can_load_stays(caplog: pytest.LogCaptureFixture) -> None:
    """A module made in the session travels by name, and there is nothing behind the name
    elsewhere.
    """
    module = types.ModuleType("made_here")
    exec("def made(completions, **columns):\n    return [2.0 for _ in completions]", vars(module))
    sys.modules["made_here"] = module

    def other(completions: list[str], **columns: Any) -> list[float]:
        return [float(os.getpid()) for _ in completions]

    try:
        entries = [ScoredReward(load_reward(f)) for f in (module.made, other)]
        process = isolate(entries, workers=1, timeout=10)
        assert entries[0](completions=["a"]) == [2.0]
        assert entries[1](completions=["a"]) != [float(os.getpid())]
        assert (
            "'made' is called in the trainer's process" in caplog.text
            and "No module named 'made_here'" in caplog.text
        )
    finally:
        del sys.modules["made_here"]
    assert process is not None
    process.close()


def test_columns_of_classes_from_scripts_travel() -> None:
    class Table:
        def __init__(self, score: float) -> None:
            self.score = score

    def reads(completions: list[str], tables: Any) -> list[float]:
        return [table.score for table in tables]

    entry = ScoredReward(load_reward(reads))
    process = isolate([entry], workers=1, timeout=10)
    assert entry(completions=["a", "b"], tables=[Table(0.5), Table(2.0)]) == [0.5, 2.0]
    assert process is not None
    process.close()


@pytest.mark.parametrize("workers", [1, 8])
def test_no_more_async_rewards_under_way_than_allowed(workers: int, tmp_path: Path) -> None:
    folder = str(tmp_path)

    @reward_settings(concurrency=3, batched=False)
    async def counted(completions: list[str], **columns: Any) -> list[float]:
        import asyncio
        import tempfile

        with tempfile.NamedTemporaryFile(dir=folder):
            await asyncio.sleep(0.05)
            return [float(len(os.listdir(folder)))]

    entry = ScoredReward(load_reward(counted))
    process = isolate([entry], workers=workers, timeout=10)
    values = entry(completions=["a"] * 24)
    assert max(values) <= 3
    assert process is not None
    process.close()


@pytest.mark.long
def test_slow_imports_are_not_a_completion_s_time(tmp_path: Path) -> None:
    (tmp_path / "slow_to_import.py").write_text("import time\ntime.sleep(1.5)\n")
    (tmp_path / "mine.py").write_text(
        "import sys\nsys.path.insert(0, r'"
        + str(tmp_path)
        + "')\nfrom grpo_hf import reward_settings\n\n\n"
        "@reward_settings(imports=('slow_to_import',), batched=False, in_process=False)\n"
        "def late(completions, **columns):\n"
        "    import slow_to_import\n    return [1.0 for _ in completions]\n"
    )
    entry = ScoredReward(load_reward(f"{tmp_path}/mine.py:late"))
    process = isolate([entry], workers=2, timeout=0.5)
    assert entry(completions=["a"] * 8) == [1.0] * 8
    assert process is not None
    process.close()
