"""The view of a run in a terminal: what it shows, that nothing tears it, and where it is not."""

import io
import logging
import signal
import sys
import time
from types import SimpleNamespace

import pytest
from accelerate import Accelerator
from rich.console import Console
from transformers import TrainerControl

from grpo_hf import GRPOConfig
from grpo_hf.durability.leaving import Departure
from grpo_hf.reporting import credit_file, live_view, run_callbacks
from grpo_hf.reporting.live_view import LiveView, StepPhases
from grpo_hf.reporting.phases import CLOCK
from grpo_hf.reporting.progress import ProgressLine
from grpo_hf.reporting.token_credit import Completion, Group

LOGS = {
    "loss": 0.1,
    "reward": 0.5,
    "rewards/gsm8k/mean": 0.25,
    "rewards/gsm8k/std": 0.4,
    "kl": 0.01,
}
LOGS |= {"completions/mean_length": 41.6, "num_tokens": 5000.0}


def state_at(step, first=True):
    return SimpleNamespace(
        global_step=step, max_steps=160, num_input_tokens_seen=0, is_world_process_zero=first
    )


@pytest.fixture
def terminal():
    """A console of 80 by 24, and what has been written to it."""
    written = io.StringIO()
    return Console(file=written, force_terminal=True, width=80, height=24, highlight=False), written


@pytest.fixture
def view(terminal):
    shown = LiveView(["gsm8k"], terminal[0])
    with live_view.ended():
        shown.on_train_begin(None, state_at(0), None)
        yield shown


def picture_of(view, width=80, height=24):
    console = Console(width=width, height=height, record=True, file=io.StringIO())
    console.print(view.picture())
    return console.export_text()


def group(*texts_and_rewards):
    completions = []
    for text, reward in texts_and_rewards:
        completions.append(Completion([text, "<end>"], [0.0, 0.0], [1], reward))
    return Group(1, "a question", completions)


class TestPicture:
    def test_fits_into_a_terminal_of_80_by_24(self, view):
        for step in range(1, 90):
            view.on_step_begin(None, state_at(step - 1), TrainerControl())
            view.on_step_end(None, state_at(step), TrainerControl())
            view.on_log(None, state_at(step), None, {**LOGS, "reward": step / 90})
        for listener in credit_file.LISTENERS:
            listener(group(("right \x1b[31m" * 90, 1.2), ("wrong\n" * 90, 0.0), ("none", None)))
        lines = picture_of(view).rstrip("\n").split("\n")
        assert len(lines) <= 24 and max(map(len, lines)) <= 80
        text = "\n".join(lines)
        for part in ("step 89/160", "left", "rollout", "scoring", "update", "▇█ 0.989", "kl"):
            assert part in text
        assert "gsm8k 0.250±0.40" in text and "length 42" in text
        assert "best  1.200  right ␛[31m" in text and "worst 0.000  wrong" in text and "…" in text
        assert "\x1b" not in text

    def test_an_evaluation_is_no_update(self, view):
        view.on_step_begin(None, state_at(0), TrainerControl())
        view.on_step_end(None, state_at(1), TrainerControl(should_evaluate=True))
        for phase in ("rollout", "scoring", None):
            view._phases.hear(phase)
        time.sleep(0.06)
        text = picture_of(view)
        assert "evaluating, 0 s" in text and " 0.1 s" not in text
        view.close()
        assert "evaluating" not in picture_of(view)
        view.on_step_begin(None, state_at(1), TrainerControl())
        time.sleep(0.06)
        assert "evaluating" not in picture_of(view) and " 0.1 s" in picture_of(view)

    def test_a_step_on_an_earlier_rollout_keeps_the_rate(self, view):
        view._last_log -= 10
        view.on_log(None, state_at(1), None, LOGS)
        view.on_log(None, state_at(2), None, {"loss": 0.1, "kl": 0.1})
        assert " 0 tokens/s" not in picture_of(view) and " tokens/s" in picture_of(view)

    def test_a_step_without_numbers(self, view):
        view.on_log(None, state_at(1), None, {"loss": 0.1, "reward": float("nan"), "kl": None})
        assert "step 0/160" in picture_of(view)

    def test_costs_less_than_a_hundredth_of_a_core(self, view):
        self.test_fits_into_a_terminal_of_80_by_24(view)
        began = time.process_time()
        for _ in range(10):
            picture_of(view)
        seconds = (time.process_time() - began) / 10
        assert seconds * live_view._REFRESHES_PER_SECOND < 0.05


class TestPhases:
    def test_a_bar_is_the_share_of_what_is_usual(self, monkeypatch):
        now = [0.0]
        monkeypatch.setattr(live_view.time, "monotonic", lambda: now[0])
        phases = StepPhases()
        phases.begin_step()

        def spend(phase, seconds):
            phases.hear(phase)
            now[0] += seconds

        for phase, seconds in (("rollout", 4), ("scoring", 1), ("reference", 1), (None, 10)):
            spend(phase, seconds)
        assert phases.bars() == [("rollout", 1.0, 4), ("scoring", 1.0, 2), ("update", 0.0, 10)]
        phases.end_step()
        spend("rollout", 7)
        assert phases.bars() == [(phase, 0.0, 0.0) for phase in ("rollout", "scoring", "update")]
        phases.begin_step()
        spend("rollout", 3)
        assert phases.bars() == [("rollout", 0.75, 3), ("scoring", 0.0, 0), ("update", 0.0, 0)]
        spend(None, 5)
        assert phases.bars() == [("rollout", 1.0, 3), ("scoring", 0.0, 0), ("update", 0.5, 5)]


class TestTerminal:
    def test_logs_and_prints_scroll_by_above(self, terminal):
        console, written = terminal
        handler = logging.StreamHandler(sys.stderr)
        logger = logging.getLogger("grpo_hf.test_live_view")
        logger.addHandler(handler)
        stdout = sys.stdout
        try:
            with live_view.ended():
                LiveView(["gsm8k"], console).on_train_begin(None, state_at(0), None)
                assert handler.stream is sys.stderr is not stdout
                logger.warning("a warning")
                print("a line")
            logger.removeHandler(handler)
            text = written.getvalue()
            # rich takes the view away before a line, and draws it again below.
            assert "a warning\n" in text and "a line\n" in text
            assert text.index("a warning") < text.index("a line") < text.rindex("rollout")
            # A process that is killed leaves the cursor as it is.
            assert "\x1b[?25h" in text
        finally:
            logger.removeHandler(handler)
        assert sys.stdout is stdout and not CLOCK.listeners and not credit_file.LISTENERS

    def test_a_signal_is_said_within_it(self, terminal, view, capfd):
        departure = Departure()
        departure._note(signal.SIGTERM, None)
        assert capfd.readouterr().err == "", "a line of its own would tear the view"
        view._live.refresh()
        assert "SIGTERM: the run leaves at the end of a step" in terminal[1].getvalue()
        view.close()
        Departure()._note(signal.SIGTERM, None)
        assert capfd.readouterr().err.startswith("SIGTERM: the run leaves")

    def test_how_it_goes_on_is_the_last_line(self, terminal, tmp_path, monkeypatch):
        stderr = io.StringIO()
        # Before the view, which puts its own in the place of it.
        monkeypatch.setattr(sys, "stderr", stderr)
        departure = Departure(Accelerator(cpu=True))
        with pytest.raises(KeyboardInterrupt), live_view.ended():
            view = LiveView(["gsm8k"], terminal[0])
            view.on_train_begin(None, state_at(0), None)
            departure._note(signal.SIGINT, None)
            view._live.refresh()
            departure.leave(lambda: None, tmp_path, 3)
        earlier, last_picture = terminal[1].getvalue().rsplit("rollout", 1)
        assert "leaves at the end of a step" in earlier
        assert "leaves at the end of a step" not in last_picture
        # While a view is shown, what is printed scrolls by above it.
        assert "goes on from there" not in last_picture
        assert stderr.getvalue().endswith("--resume_from_checkpoint auto goes on from there.\n")

    def test_an_error_takes_it_away(self, terminal):
        stdout = sys.stdout
        with pytest.raises(KeyboardInterrupt), live_view.ended():
            LiveView(["gsm8k"], terminal[0]).on_train_begin(None, state_at(0), None)
            assert sys.stdout is not stdout
            raise KeyboardInterrupt
        assert sys.stdout is stdout

    def test_only_the_first_process_shows_it(self, terminal):
        view = LiveView(["gsm8k"], terminal[0])
        view.on_train_begin(None, state_at(0, first=False), None)
        assert not terminal[1].getvalue() and not CLOCK.listeners


class TestChoice:
    @pytest.fixture
    def chosen(self, tmp_path, monkeypatch):
        def choose(terminal=True, term="xterm", **settings):
            monkeypatch.setattr(sys, "stdout", io.StringIO())
            monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
            monkeypatch.setenv("TERM", term)
            args = GRPOConfig(output_dir=str(tmp_path), use_cpu=True, **settings)
            kinds = [type(each) for each in run_callbacks.report_callbacks(["gsm8k"], args)]
            assert (LiveView in kinds) != (ProgressLine in kinds)
            return LiveView in kinds

        return choose

    def test_a_terminal(self, chosen):
        assert chosen()

    @pytest.mark.parametrize(
        "settings",
        [
            {"terminal": False},
            {"term": "dumb"},
            {"live_view": False},
            {"log_level": "info"},
        ],
    )
    def test_lines_elsewhere(self, chosen, settings):
        assert not chosen(**settings)
