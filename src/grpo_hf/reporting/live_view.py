"""The view of a run in a terminal: the present step, how it went so far, and what was written.

It takes the place of the line per logging step. Everything else that is printed or logged scrolls
by above it.
"""

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console, RenderableType
from rich.console import Group as Rows
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..config import option
from . import credit_file
from .credit_display import PICTURES
from .metrics_file import finite
from .phases import CLOCK
from .progress import ProgressLine, left_part, rollout_parts
from .token_credit import Completion, Group

# What of a step has a bar; the reference pass belongs to the scoring.
_BARS = ("rollout", "scoring", "update")
_BLOCKS = "▁▂▃▄▅▆▇█"
# Logged steps of a sparkline.
_POINTS = 40
# The widest and the highest that the view becomes, in a terminal of any size.
_WIDTH = 110
_TEXT_LINES = 6
# Lines of the view that are no completion's.
_OTHER_LINES = 11
_REFRESHES_PER_SECOND = 2
# The view that is on the screen now, if there is one.
_shown: list["LiveView"] = []


def is_wanted(args: Any) -> bool:
    """Whether a run is watched in a terminal, and nothing but warnings is logged there."""
    console = Console()
    is_terminal = sys.stdout.isatty() and console.is_terminal and not console.is_dumb_terminal
    # Sparklines are in no other encoding.
    is_terminal = is_terminal and console.encoding.startswith("utf")
    is_normal = args.get_process_log_level() >= logging.WARNING
    return bool(option(args, "live_view")) and is_terminal and is_normal


@contextmanager
def ended() -> Iterator[None]:
    """Take the view away after a block, however that ends; the last picture of it stays."""
    try:
        yield
    finally:
        close_views()


def close_views() -> None:
    """Take the view away, if there is one, and with it the line below it."""
    for view in _shown[:]:
        view.notice = ""
        view.close()


def show_notice(text: str) -> bool:
    """Show a line below the view, if there is one; return whether.

    A handler of signals may call it: the view is drawn by its own thread, and later.
    """
    for view in _shown:
        view.notice = text
    return bool(_shown)


class LiveView(ProgressLine):
    """Show the phases of the present step, reward and KL over the steps, the best and the worst.

    Args:
        reward_names: of the run.
        console: where it is shown; by default stdout.
    """

    def __init__(self, reward_names: list[str], console: Console | None = None) -> None:
        super().__init__(reward_names)
        self._console = console or Console(highlight=False)
        self._phases = StepPhases()
        self._logged: list[dict[str, Any]] = []
        self._foot: list[str] = []
        self._group: Group | None = None
        self._steps = (0, 0)
        self._rate = 0.0
        self._left = ""
        self._evaluates = False
        self.notice = ""
        self._streams: list[tuple[logging.StreamHandler[Any], Any]] = []
        # It asks for the first picture at once.
        self._live = Live(
            console=self._console,
            get_renderable=self.picture,
            refresh_per_second=_REFRESHES_PER_SECOND,
        )

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        super().on_train_begin(args, state, control, **more)
        self._steps = (state.global_step, state.max_steps)
        if not state.is_world_process_zero or _shown:
            return
        CLOCK.listeners.append(self._phases.hear)
        credit_file.LISTENERS.append(self._show_group)
        _shown.append(self)
        real = (sys.stdout, sys.stderr)
        self._live.start(refresh=True)
        # A process that is killed could not show it again.
        self._console.show_cursor(True)
        self._route_logs(real)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.close()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._phases.begin_step()
        self._evaluates = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._phases.end_step()
        self._evaluates = control.should_evaluate
        self._steps = (state.global_step, state.max_steps)

    def show_step(
        self, steps: tuple[int, int], logs: dict[str, Any], rate: float, left: float
    ) -> None:
        """Take what a step logs into the picture."""
        self._logged = [*self._logged, dict(logs)][-_POINTS:]
        # Several updates of a rollout log its rewards once.
        if "reward" in logs:
            parts = rollout_parts(logs, self.reward_names)
            # Those two have a curve.
            self._foot = [part for part in parts if not part.startswith(("reward ", "kl "))]
        # A step on an earlier rollout samples none.
        self._rate = rate or self._rate
        self._left = "  ".join([f"{self._rate:,.0f} tokens/s", *left_part(*steps, left)])

    def close(self) -> None:
        """Leave the last picture on the screen, and let everything print as before."""
        if self not in _shown:
            return
        _shown.remove(self)
        # The last picture stays.
        self._evaluates = False
        CLOCK.listeners.remove(self._phases.hear)
        credit_file.LISTENERS.remove(self._show_group)
        for handler, stream in self._streams:
            handler.setStream(stream)
        self._streams.clear()
        # The terminal may be gone.
        with suppress(OSError):
            self._live.stop()

    def picture(self) -> RenderableType:
        """Return what the terminal shows now."""
        step, steps = self._steps
        width = min(self._console.width, _WIDTH) - 1
        head = Table.grid(padding=(0, 1))
        done = ProgressBar(max(steps, 1), step, width=max(10, width - 46))
        waited = self._phases.seconds_between
        shown = f"evaluating, {waited:.0f} s" if self._evaluates else self._left
        head.add_row(f"step {step}/{steps}", done, shown)
        rows: list[RenderableType] = [head, self._phase_bars(width), self._curves(width)]
        rows += [Text("  " + "  ".join(self._foot)[: 2 * width], style="dim")] if self._foot else []
        below = [Text(self.notice, style="bold")] if self.notice else []
        return Rows(Text("─" * width, style="dim"), *rows, *self._samples(width), *below)

    def _phase_bars(self, width: int) -> Table:
        table = Table.grid(padding=(0, 1))
        for phase, share, seconds in self._phases.bars():
            bar = ProgressBar(1.0, share, width=max(10, width - 46))
            table.add_row(f"  {phase}", bar, f"{seconds:.1f} s" if seconds else "")
        return table

    def _curves(self, width: int) -> Table:
        table = Table.grid(padding=(0, 1))
        for name, form in (("reward", ".3f"), ("kl", "z.4f")):
            values = [finite(row[name]) for row in self._logged if name in row]
            if values and values[-1] is not None:
                line = sparkline(values[-max(10, width - 30) :])
                table.add_row(f"  {name:<7}", Text(line, style="cyan"), f"{values[-1]:{form}}")
        return table

    def _samples(self, width: int) -> Iterator[RenderableType]:
        """Yield the best and the worst completion of the group that was kept last."""
        if self._group is None:
            return
        judged: list[Completion] = []
        for completion in self._group.completions:
            if completion.reward is not None:
                judged.append(completion)
        judged.sort(key=lambda completion: completion.reward or 0.0)
        lines = min(_TEXT_LINES, max(1, (self._console.height - _OTHER_LINES) // 2))
        for name, style, some in (("best", "green", judged[-1:]), ("worst", "red", judged[:1])):
            for completion in some:
                table = Table.grid(padding=(0, 1))
                table.add_column(width=12)
                table.add_column(width=width - 13)
                title = Text(f"{name:<5} {completion.reward:.3f}", style=style)
                table.add_row(title, _shortened(completion.text, width - 13, lines))
                yield table

    def _show_group(self, group: Group) -> None:
        self._group = group

    def _route_logs(self, real: tuple[Any, Any]) -> None:
        """Let what handlers of logs write to the terminal scroll by above the view."""
        loggers = [logging.getLogger(), *map(logging.getLogger, logging.root.manager.loggerDict)]
        for logger in loggers:
            for handler in logger.handlers:
                if isinstance(handler, logging.StreamHandler) and handler.stream in real:
                    self._streams.append((handler, handler.stream))
                    # While a view is shown, these are rich's.
                    handler.setStream(sys.stdout if handler.stream is real[0] else sys.stderr)


class StepPhases:
    """The seconds of each phase of the present step, and what they usually are.

    What lies between two steps, such as an evaluation, belongs to none.
    """

    def __init__(self) -> None:
        self._usual: dict[str, float] = {}
        self._spent = dict.fromkeys(_BARS, 0.0)
        # None between steps.
        self._phase: str | None = None
        self._since = time.monotonic()

    @property
    def seconds_between(self) -> float:
        """How long no step has been under way; 0 while one is."""
        return 0.0 if self._phase is not None else time.monotonic() - self._since

    def begin_step(self) -> None:
        """Begin a step."""
        self._spent = dict.fromkeys(_BARS, 0.0)
        self._phase, self._since = "update", time.monotonic()

    def hear(self, phase: str | None) -> None:
        """Go on with another phase; None is the update. An evaluation's phases are no step's."""
        if self._phase is None:
            return
        self._count()
        self._phase = "update" if phase is None else phase
        if self._phase not in _BARS:
            self._phase = "scoring"

    def end_step(self) -> None:
        """End the step; what it took is what is usual."""
        self._count()
        for phase, seconds in self._spent.items():
            # A step on an earlier rollout has no rollout.
            if seconds:
                self._usual[phase] = seconds
        self._spent = dict.fromkeys(_BARS, 0.0)
        self._phase = None

    def bars(self) -> list[tuple[str, float, float]]:
        """Return each phase with the share of it that is done, and its seconds."""
        phase_now, since = self._phase, self._since
        if phase_now is None:
            return [(phase, 0.0, 0.0) for phase in _BARS]
        bars = []
        for phase in _BARS:
            seconds = self._spent[phase]
            if phase == phase_now:
                # Not added up: the trainer's thread does that.
                seconds += time.monotonic() - since
            # What was never seen has no share yet.
            share = min(seconds / self._usual[phase], 1.0) if phase in self._usual else 0.0
            is_past = _BARS.index(phase) < _BARS.index(phase_now) and self._spent[phase] > 0
            bars.append((phase, 1.0 if is_past else share, seconds))
        return bars

    def _count(self) -> None:
        now = time.monotonic()
        if self._phase is not None:
            self._spent[self._phase] += now - self._since
        self._since = now


def sparkline(values: Sequence[float | None]) -> str:
    """Return values as a line of blocks, from the lowest to the highest; a gap is a space.

    >>> sparkline([0.0, 1.0, None, 0.5])
    '▁█ ▄'
    """
    known = [value for value in values if value is not None]
    lowest = min(known, default=0.0)
    span = max(known, default=0.0) - lowest
    blocks = []
    for value in values:
        if value is None:
            blocks.append(" ")
        else:
            place = (value - lowest) / span if span > 0 else 0.0
            blocks.append(_BLOCKS[int(place * (len(_BLOCKS) - 1))])
    return "".join(blocks)


def _shortened(text: str, width: int, lines: int) -> Text:
    """Return a completion in a few lines; nothing that it holds steers the terminal."""
    room = width * lines
    # More could not be seen, and a long text would take time in each picture.
    shown = Text(text.strip()[:room].translate(PICTURES))
    wrapped = shown.wrap(Console(width=width), width)
    kept = wrapped[:lines]
    if len(wrapped) > lines or len(text.strip()) > room:
        kept[-1].truncate(width - 2)
        kept[-1].append(" …", style="dim")
    return Text("\n").join(kept)
