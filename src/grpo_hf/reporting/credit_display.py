"""Token credit as coloured text, for a terminal or as an HTML page.

Blue tokens were made likelier by the update, orange tokens less likely, and a stronger colour means
a larger advantage. Nothing heavy is imported.
"""

import html
from collections.abc import Iterator, Sequence
from string import Template
from typing import NamedTuple

from rich.color import Color
from rich.style import Style
from rich.text import Text

from .token_credit import Completion, Group

# Okabe and Ito's sky blue and orange, which colour-blind readers can tell apart as well.
_UP = (86, 180, 233)
_DOWN = (230, 159, 0)
_WHITE = 255


def _control_pictures() -> dict[int, int]:
    """Return what is shown for each control character but newline and tab.

    As they are, control characters would steer the terminal, or be dropped by a browser.
    """
    pictures = {}
    # Unicode has pictures of the 32 ASCII control characters, in their order, and of DEL.
    for code in range(32):
        if chr(code) not in "\n\t":
            pictures[code] = 0x2400 + code
    pictures[0x7F] = 0x2421
    # The other control characters have no picture; they become replacement characters.
    for code in range(0x80, 0xA0):
        pictures[code] = 0xFFFD
    return pictures


PICTURES = _control_pictures()


class Piece(NamedTuple):
    """A token as it is shown.

    `starts_step` says that its advantage differs from the advantage of the token before it, and
    `rewards` are those of the steps that end with it.
    """

    text: str
    advantage: float
    special: bool
    starts_step: bool
    rewards: tuple[float, ...] = ()


def pieces(completion: Completion) -> Iterator[Piece]:
    """Yield the tokens of a completion that have a text."""
    before = None
    ends = completion.steps_at
    rewards: list[float] = []
    tokens = zip(completion.tokens, completion.advantages, strict=True)
    for position, (text, advantage) in enumerate(tokens):
        rewards += ends.get(position, [])
        # The text of an incomplete character comes with a later token.
        if not text:
            continue
        starts_step = before is not None and advantage != before
        special = position in completion.special
        yield Piece(text.translate(PICTURES), advantage, special, starts_step, tuple(rewards))
        before = advantage
        rewards = []


def share(advantage: float, scale: float) -> float:
    """Return how much colour an advantage has, from -1 (full orange) over 0 to 1 (full blue).

    >>> share(0.5, 2.0), share(-2.0, 2.0), share(0.0, 0.0)
    (0.25, -1.0, 0.0)
    """
    return advantage / scale if scale else 0.0


def colour(portion: float) -> tuple[int, int, int]:
    """Return a share of colour as red, green and blue; a share of 0 is white.

    Black text can be read on all of these colours.
    """
    red, green, blue = _UP if portion > 0 else _DOWN
    return _channel(red, portion), _channel(green, portion), _channel(blue, portion)


def _channel(full: int, portion: float) -> int:
    """Return a channel between white and the full colour."""
    return round(_WHITE + (full - _WHITE) * abs(portion))


def summary(completion: Completion) -> str:
    """Return reward and advantages in words.

    >>> summary(Completion(["a", "b"], [0.5, -1.0], [], 1.0))
    'reward 1.000, advantages -1.000 to +0.500'
    """
    reward = "-" if completion.reward is None else f"{completion.reward:.3f}"
    if not completion.advantages:
        return f"reward {reward}, left out of the loss"
    low = min(completion.advantages)
    high = max(completion.advantages)
    if low == high:
        return f"reward {reward}, advantage {low:+.3f}"
    return f"reward {reward}, advantages {low:+.3f} to {high:+.3f}"


def to_text(group: Group) -> Text:
    """Return a group for a terminal, with the advantage as the background of each token.

    White space is shown as ⏎, · and ⇥, and │ stands where the advantage changes. After a step
    stands its reward, if a reward speaks of steps.
    """
    text = Text(f"step {group.step}  ")
    for portion in (-1.0, -0.5, 0.0, 0.5, 1.0):
        # Adding 0.0 turns -0.0 into 0.0, which is printed without a minus.
        text.append(f" {portion * group.scale + 0.0:+.3g} ", _style(portion))
    text.append("  │ a step ends  · a space  ⏎ a line ends", "dim")
    text.append(f"\n{group.extent}\n", "dim")
    text.append(f"\n{group.prompt.translate(PICTURES)}\n", "dim")
    for number, completion in enumerate(group.completions, 1):
        text.append(f"\ncompletion {number}: {summary(completion)}\n", "bold")
        for piece in pieces(completion):
            _append_piece(text, piece, group.scale)
        text.append("\n")
    return text


def _append_piece(text: Text, piece: Piece, scale: float) -> None:
    shown = piece.text
    # Spaces between words need no mark; a token of white space alone would be invisible.
    if shown.isspace():
        shown = shown.replace(" ", "·").replace("\t", "⇥")
    if piece.starts_step:
        text.append("│")
    style = _style(share(piece.advantage, scale))
    if piece.special:
        style += Style(bold=True)
    text.append(shown.replace("\n", "⏎\n"), style)
    if piece.rewards:
        text.append(f"[{step_rewards(piece.rewards)}]", "dim")


def step_rewards(rewards: Sequence[float]) -> str:
    """Return the rewards of a step in words.

    >>> step_rewards([0.91, 0.5])
    'step 0.91, 0.5'
    """
    return f"step {', '.join(format(reward, '.3g') for reward in rewards)}"


def _style(portion: float) -> Style:
    # Without an advantage the terminal's own colours stay.
    if not portion:
        return Style()
    background = Color.from_rgb(*colour(portion))
    return Style(color=Color.from_rgb(0, 0, 0), bgcolor=background)


def to_html(groups: Sequence[Group]) -> str:
    """Return groups as one page that needs no other file.

    The advantage of each token is in its tooltip. The style sheet draws the marks of white space,
    so the text that a reader copies from the page is exactly the completion.
    """
    return _PAGE.substitute(body="\n".join(map(_section, groups)))


def _section(group: Group) -> str:
    # 0 - scale, because -0.0 would be printed with a minus.
    legend = (
        f'<p class="legend">{0 - group.scale:+.3g} <span class="bar"></span> '
        f'{group.scale:+.3g} <span class="step"></span> a step ends</p>'
    )
    # dir="auto" lets a text in Arabic or Hebrew run from right to left.
    prompt = f'<div class="prompt" dir="auto">{_escaped(group.prompt)}</div>'
    lines = [
        f"<section><h2>Step {group.step}</h2>",
        f"<p>{group.extent}</p>",
        legend,
        f"<details><summary>Prompt</summary>{prompt}</details>",
    ]
    for number, completion in enumerate(group.completions, 1):
        spans = []
        for piece in pieces(completion):
            spans.append(_span(piece, share(piece.advantage, group.scale)))
        lines.append(f"<h3>Completion {number}: {summary(completion)}</h3>")
        lines.append(f'<div class="completion" dir="auto">{"".join(spans)}</div>')
    lines.append("</section>")
    return "\n".join(lines)


def _span(piece: Piece, portion: float) -> str:
    classes = []
    if portion > 0:
        classes.append("up")
    if portion < 0:
        classes.append("down")
    if piece.special:
        classes.append("special")
    if piece.starts_step:
        classes.append("step")
    text = _escaped(piece.text)
    if piece.text.isspace():
        text = text.replace(" ", '<i class="space"> </i>')
    # A newline keeps its mark in every token: it ends a line of the page as well.
    text = text.replace("\n", '<i class="line">\n</i>')
    style = f"--share:{abs(portion):.3f}"
    title = f"{piece.advantage:+.4g}"
    if piece.rewards:
        title += f", {step_rewards(piece.rewards)}"
    return f'<span class="{" ".join(classes)}" style="{style}" title="{title}">{text}</span>'


def _escaped(text: str) -> str:
    return html.escape(text.translate(PICTURES))


# The page has to work from a file, without a network, so the style sheet is inside. A backslash at
# the end of a line continues the line of the page.
_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Token credit</title>
<style>
:root { color-scheme: light dark; --up: 86 180 233; --down: 230 159 0; --ink: #111; --paper: #fff; }
@media (prefers-color-scheme: dark) { \
:root { --up: 0 95 155; --down: 165 75 0; --ink: #eee; --paper: #111; } }
body { color: var(--ink); background: var(--paper); font: 1rem/1.6 system-ui, sans-serif; \
max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 0.3rem; }
.prompt, .completion { font-family: ui-monospace, monospace; white-space: pre-wrap; \
overflow-wrap: anywhere; }
.up { background: rgb(var(--up) / var(--share)); }
.down { background: rgb(var(--down) / var(--share)); }
.special { font-weight: bold; outline: 1px dashed; outline-offset: -1px; }
.step { border-left: 2px solid; }
.legend .step { margin: 0 0.4em 0 2em; }
i { font-style: normal; }
i::before { opacity: 0.6; }
.space::before { content: "·"; position: absolute; }
.line::before { content: "⏎"; }
.bar { display: inline-block; width: 12rem; height: 0.8em;
  background: linear-gradient(to right, rgb(var(--down)), transparent, rgb(var(--up))); }
</style>
</head>
<body>
<h1>Token credit</h1>
<p>Each token with the advantage that it was trained on: blue was made likelier, \
orange less likely. \
Full colour is the
largest advantage of the group; the number is in the tooltip.</p>
$body
</body>
</html>
""")
