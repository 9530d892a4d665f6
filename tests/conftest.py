"""Fixtures that more than one test module uses."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakehub import FakeHub


@pytest.fixture
def fake_hub(tmp_path: Path) -> Iterator[FakeHub]:
    """An empty Hub on a free loopback port; run clients in a subprocess with `env=fake_hub.environment()`."""
    with FakeHub(tmp_path / "hf_home") as hub:
        yield hub
