"""What a program does around a run."""

import io
import sys

import pytest

from grpo_hf.runs.program import exit_on_error


def test_prints_in_a_locale_that_lacks_a_character(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    with exit_on_error():
        print("layers · 0.5±0.1", flush=True)
    assert written.getvalue() == b"layers ? 0.5?0.1\n"
