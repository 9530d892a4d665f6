"""How a reward is called: as in TRL, and by groups where that came to nothing."""

import asyncio
import concurrent.futures
import linecache
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grpo_hf import reward_settings
from grpo_hf.scoring import patience
from grpo_hf.scoring.calling import narrowed, runs_of
from grpo_hf.scoring.outcomes import Failure, Outcome
from grpo_hf.scoring.registry import load_reward
from grpo_hf.scoring.run_rewards import isolate
from grpo_hf.scoring.scored_reward import ScoredReward

TEXTS = ["a", "bbb", "cc", "dddd", "eeeee", "f"]
GROUPS = [[0, 1, 2], [3, 4, 5]]
LENGTHS = [1.0, 3.0, 2.0, 4.0, 5.0, 1.0]


@pytest.fixture
def isolated() -> Iterator[Any]:
    """A function that puts rewards into a process with two workers."""
    processes = []

    def make(*rewards: Any, timeout: float | None = 20.0) -> Any:
        entries = [ScoredReward(load_reward(reward)) for reward in rewards]
        process = isolate(entries, workers=2, timeout=timeout)
        assert process is not None and all(entry.is_isolated for entry in entries)
        processes.append(process)
        return entries[0] if len(entries) == 1 else entries

    yield make
    for process in processes:
        process.close()


def calls_in(folder: Path) -> list[int]:
    """How many completions each call had that a reward has noted there."""
    return sorted(int(file.name.partition("_")[0]) for file in folder.iterdir())


def noted(folder: str, completions: list[str]) -> None:
    Path(folder, f"{len(completions)}_{time.monotonic_ns()}_{os.getpid()}").touch()


def values(outcomes: list[Outcome]) -> list[float | None]:
    return [outcome.value for outcome in outcomes]


def reasons(outcomes: list[Outcome]) -> list[str | None]:
    return [outcome.failure.reason if outcome.failure else None for outcome in outcomes]


def test_a_call_has_all_completions_as_in_trl(isolated: Any, tmp_path: Path) -> None:
    folder = str(tmp_path)

    def lengths(completions: list[str], **_: Any) -> list[float]:
        noted(folder, completions)
        return [float(len(text)) for text in completions]

    entry = isolated(lengths)
    for _ in range(3):
        assert entry(completions=TEXTS) == LENGTHS
    assert calls_in(tmp_path) == [6] * 3


def test_what_compares_now_and_then_is_right_each_time(isolated: Any) -> None:
    def longest_of_long(completions: list[str], **_: Any) -> list[float]:
        longest = max(map(len, completions))
        return [float(len(text)) - (longest if longest > 5 else 0) for text in completions]

    entry = isolated(longest_of_long)
    for _ in range(5):
        assert entry(completions=TEXTS) == LENGTHS
    assert entry(completions=["a" * 9, "a"]) == [0.0, -8.0]


def test_a_state_that_nobody_else_sees_is_kept(isolated: Any) -> None:
    """A library's cache, as of a client, may be all that a reward remembers."""

    def counts(completions: list[str], **_: Any) -> list[float]:
        linecache.cache["calls"] = linecache.cache.get("calls", 0) + 1
        return [float(linecache.cache["calls"]) for _ in completions]

    # By its author's word: a dictionary of a library's is nothing that stays as it is.
    entry = isolated(reward_settings(in_process=False)(counts))
    assert [entry(completions=["a", "b"])[0] for _ in range(4)] == [1.0, 2.0, 3.0, 4.0]
    # A trial is no call that TRL would make.
    assert values(entry.score(["a"], {}, is_trial=True)) == [1.0]
    assert entry(completions=["a"]) == [5.0]


def test_what_changes_its_lists_moves_to_the_trainer(
    isolated: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def strips(completions: list[str], answer: list[str], **_: Any) -> list[float]:
        completions[:] = [text.strip() for text in completions]
        answer.append("seen")
        return [float(len(text)) for text in completions]

    entry = isolated(strips)
    assert entry(completions=[" a", "b"], answer=["a", "b"]) == [1.0, 1.0]
    assert not entry.is_isolated and "it changes the lists" in caplog.text
    completions, answer = [" a", "b"], ["a", "b"]
    assert entry(completions=completions, answer=answer) == [1.0, 1.0]
    assert (completions, answer) == (["a", "b"], ["a", "b", "seen"])


def test_declarations_are_believed(isolated: Any, tmp_path: Path) -> None:
    folder = str(tmp_path)

    def count(completions: list[str], **_: Any) -> list[float]:
        noted(folder, completions)
        return [float(len(completions)) for _ in completions]

    for batched, calls in ((True, [6]), (False, [1] * 6)):
        # A decorator sets an attribute of the function, and each is pickled as it is then.
        entry = isolated(reward_settings(batched=batched)(count))
        assert entry(completions=TEXTS) == [float(calls[0])] * 6
        assert calls_in(tmp_path) == calls
        for file in tmp_path.iterdir():
            file.unlink()


@pytest.mark.long
def test_rewards_do_not_wait_for_each_other(isolated: Any) -> None:
    """Three judges on two workers, as TRL would await them."""

    def judge() -> Any:
        async def reward(completions: list[str], **_: Any) -> list[float]:
            await asyncio.sleep(1.0)
            return [float(len(text)) for text in completions]

        return reward

    entries = isolated(judge(), judge(), judge())
    start = time.monotonic()
    begun = [entry.begin(TEXTS, {})[0] for entry in entries]
    for entry, call in zip(entries, begun, strict=True):
        assert values(entry.score(TEXTS, {}, call)) == LENGTHS
    assert time.monotonic() - start < 2.5


def test_a_reward_may_have_its_own_threads_and_processes(isolated: Any) -> None:
    def with_pools(completions: list[str], **_: Any) -> list[float]:
        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            list(threads.map(time.sleep, [0.05] * len(completions)))
        with concurrent.futures.ProcessPoolExecutor(2) as processes:
            return [float(n) for n in processes.map(len, completions)]

    entry = isolated(with_pools)
    assert entry(completions=TEXTS) == LENGTHS


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "reason"), [("raise", "exception"), ("hang", "timeout"), ("die", "killed")]
)
def test_a_lost_call_is_made_again_by_groups(isolated: Any, fault: str, reason: str) -> None:
    """A comparing reward, so that the values show which calls they come from."""

    @reward_settings(batched=True, timeout=0.7)
    def share(completions: list[str], **_: Any) -> list[float]:
        if "bad" in completions:
            if fault == "raise":
                raise ValueError("no")
            if fault == "die":
                os._exit(3)
            time.sleep(60)
        return [len(text) / sum(map(len, completions)) for text in completions]

    entry = isolated(share)
    outcomes = entry.score(["a", "bbb", "cc", "dddd", "bad", "eeee"], {}, groups=GROUPS)
    assert values(outcomes) == [1 / 6, 3 / 6, 2 / 6, 0.5, None, 0.5]
    assert reasons(outcomes) == [None] * 4 + [reason, None]


@pytest.mark.long
def test_what_is_slow_for_the_first_time_has_time_by_groups(
    isolated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A judge that is asked about answers in the right form alone."""
    monkeypatch.setattr(patience, "LEAST_SECONDS", 0.5)
    monkeypatch.setattr(patience, "_UNKNOWN", 1.0)

    def judge(completions: list[str], **_: Any) -> list[float]:
        for text in completions:
            time.sleep(0.2 * (text == "asked"))
        return [float(len(text)) for text in completions]

    entry = isolated(judge, timeout=None)
    entry(completions=TEXTS)
    assert values(entry.score(["asked"] * 6, {}, groups=GROUPS)) == [5.0] * 6


def test_the_same_in_the_trainer_s_process() -> None:
    seen: list[int] = []

    def share(completions: list[str], **_: Any) -> list[float]:
        seen.append(len(completions))
        if "bad" in completions:
            raise ValueError("no")
        return [len(text) / sum(map(len, completions)) for text in completions]

    entry = ScoredReward(load_reward(share))
    assert isolate([entry], workers=2, timeout=5) is None
    outcomes = entry.score(["a", "bbb", "cc", "dddd", "bad", "eeee"], {}, groups=GROUPS)
    assert values(outcomes) == [1 / 6, 3 / 6, 2 / 6, 0.5, None, 0.5]
    assert seen == [6, 3, 3, 1, 1, 1, 2]


def test_what_nobody_can_be_blamed_for_is_left_out() -> None:
    lost = [Outcome(None, Failure("exception", "no"))]

    def only_alone(row_lists: Any) -> Any:
        return [[Outcome(1.0)] if len(rows) == 1 else lost * len(rows) for rows in row_lists]

    assert values(narrowed(lost * 4, [[0, 1], [2], [3]], only_alone)) == [None, None, 1.0, 1.0]
    assert narrowed(lost * 2, [[0, 1]], lambda rows: [lost for _ in rows]) == lost * 2


def test_a_length_that_is_always_wrong_fits_no_completion_alone(isolated: Any) -> None:
    entry = isolated(lambda completions, **_: [1.0])
    outcomes = entry.score(["a", "b", "c"], {}, groups=[[0], [1], [2]])
    assert reasons(outcomes) == ["wrong length"] * 3
    # One completion of which a reward says nothing at all is at fault itself.
    silent = isolated(lambda completions, **_: [1.0 for text in completions if text != "bad"])
    outcomes = silent.score(["a", "bad", "c"], {}, groups=[[0], [1], [2]])
    assert reasons(outcomes) == [None, "wrong length", None]


def test_groups_outside_of_a_rollout_are_equal_prompts() -> None:
    assert runs_of(["a", "a", "b", "a"]) == [[0, 1], [2], [3]]


def test_what_only_works_in_the_trainer_moves_there(
    isolated: Any, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = os.getpid()

    def at_home(completions: list[str], **_: Any) -> list[float]:
        if os.getpid() != trainer:
            raise RuntimeError("no client here")
        return [float(len(text)) for text in completions]

    entry = isolated(at_home)
    assert entry(completions=TEXTS) == LENGTHS
    assert not entry.is_isolated and "it fails in another (RuntimeError: no client" in caplog.text


def test_what_looks_at_environments_stays(isolated: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Environment:
        steps = 0

    def steps(completions: list[str], environments: list[Any], **_: Any) -> list[float]:
        for environment in environments:
            environment.steps += 1
        return [float(environment.steps) for environment in environments]

    entry = isolated(steps)
    environments = [Environment(), Environment()]
    for n in (1.0, 2.0):
        assert entry(completions=["a", "b"], environments=environments) == [n, n]
    assert "it looks at the environments" in caplog.text
    other = isolated(lambda completions, **_: [1.0 for _ in completions])
    assert other(completions=["a", "b"], environments=environments) == [1.0, 1.0]
    assert other.is_isolated
