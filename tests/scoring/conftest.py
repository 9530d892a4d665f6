"""Each test starts without registered rewards."""

import pytest


@pytest.fixture(autouse=True)
def _nothing_registered(monkeypatch):
    monkeypatch.setattr("grpo_hf.scoring.registry._registered", {})
