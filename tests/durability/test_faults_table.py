"""The table of faults in docs/reliability.md: every fault has its row, which says what happens."""

import subprocess
import sys
from pathlib import Path

import pytest
from support import faults

FAULTS = {fault.name: fault for fault in faults.faults()}
# Of one run each.
QUICK = ("NaN, mid-run", "unknown id", "no rewards")


def test_every_fault_has_its_row() -> None:
    page = faults.rows_of_page()
    assert list(page) == list(FAULTS)
    for name, fault in FAULTS.items():
        assert page[name].startswith(f"| {name} | {fault.done} | ")
        # What ends badly is not written down as if it were well.
        assert "**" not in page[name] and "a traceback" not in page[name].replace("no tr", "")


@pytest.mark.long
@pytest.mark.parametrize("name", QUICK)
def test_what_the_page_says_happens(name: str, tmp_path: Path) -> None:
    fault = FAULTS[name]
    assert faults.row(fault, fault.outcome(tmp_path)) == faults.rows_of_page()[name]


@pytest.mark.slow
def test_the_whole_table_is_that_of_the_page() -> None:
    command = [sys.executable, faults.__file__]
    done = subprocess.run(command, capture_output=True, text=True)
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert rows == list(faults.rows_of_page().values()), done.stderr[-3000:]
