"""What a process finds out about another one of its run that has ended."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from grpo_hf.durability import peers
from grpo_hf.errors import PeerEndedError, RewardFailuresError

CLOSED = "[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234"


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> peers.Peers:
    """The process 0 of two on this machine; the other one has ended."""
    other = subprocess.Popen([sys.executable, "-c", ""])
    other.wait()
    for place in ("0", "1"):
        (tmp_path / place).mkdir()
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "0" / "error.json"))
    host = os.uname().nodename
    everywhere = [("0", host, os.getpid()), ("1", host, other.pid)]
    monkeypatch.setattr(peers, "gather_object", lambda own: everywhere)
    monkeypatch.setattr(peers, "_ENDING", 0.3)
    return peers.Peers(alone=False)


def test_the_words_of_the_other_are_told(pair: peers.Peers, tmp_path: Path) -> None:
    (tmp_path / "1" / "error.json").write_text(
        json.dumps({"message": {"message": "ValueError: out of luck", "extraInfo": {}}})
    )
    said = "process 1 of the run has failed, and this one with it: ValueError: out of luck"
    with pytest.raises(PeerEndedError, match=said), pair.explained():
        raise RuntimeError(CLOSED)


def test_one_without_a_word_is_named(pair: peers.Peers) -> None:
    said = r"process 1 of the run \(pid \d+\) has gone"
    with pytest.raises(PeerEndedError, match=said), pair.explained():
        raise RuntimeError(CLOSED)


def test_an_error_of_this_process_is_its_own_and_is_left_for_the_others(
    pair: peers.Peers, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="mine"), pair.explained():
        raise ValueError("mine")
    words = json.loads((tmp_path / "0" / "error.json").read_text())
    assert words["message"]["message"] == "ValueError: mine"


def test_an_error_of_a_reward_s_server_is_its_own(pair: peers.Peers) -> None:
    with pytest.raises(RewardFailuresError), pair.explained():
        raise RewardFailuresError(CLOSED)


def test_an_error_of_the_network_alone_stays_what_it_is(
    pair: peers.Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = ("0", os.uname().nodename, os.getpid())
    monkeypatch.setattr(peers, "gather_object", lambda own: [here, ("0", "elsewhere", 1)])
    remote = peers.Peers(alone=False)
    with pytest.raises(RuntimeError, match="closed by peer"), remote.explained():
        raise RuntimeError(CLOSED)


def test_one_that_waits_for_a_failed_one_ends(
    pair: peers.Peers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """Its main thread is in a call of the network that does not return."""
    ended = threading.Event()
    codes: list[int] = []
    monkeypatch.setattr(peers, "_NOTICING", 0.1)
    monkeypatch.setattr(os, "_exit", lambda code: (codes.append(code), ended.set(), sys.exit()))
    (tmp_path / "1" / "error.json").write_text(json.dumps({"message": "out of luck"}))
    with pair.explained():
        assert ended.wait(20)
    assert codes == [2]
    assert "error: process 1 of the run has failed" in capfd.readouterr().err
