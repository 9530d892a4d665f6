"""What is said on a machine whose cores other programs use."""

import pytest
import torch

from grpo_hf.runs import busy


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a CPU")
@pytest.mark.parametrize(
    "load, threads, is_said", [(4.0, 2, True), (1.9, 2, False), (4.0, 1, False)]
)
def test_threads_on_a_busy_machine(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    load: float,
    threads: int,
    is_said: bool,
) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    busy.say_if_busy()
    said = capsys.readouterr()
    # A program may read what is on standard output.
    assert not said.out and ("OMP_NUM_THREADS=1" in said.err) == is_said
    assert not is_said or "a load of 4.0 on 2 cores" in said.err
