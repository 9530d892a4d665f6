"""Token credit: the completions of a step, each token with the advantage that it was trained on, kept and shown.

`record` appends a group per logging step to `credit.jsonl`; `to_text` and `to_html` colour its tokens: blue for what
the update makes likelier, orange for what it makes less likely. Reading and showing import nothing heavy.

Shapes: B rows of a generation batch on this process, G of them a group, C the width of their completions, F rewards,
W processes.
"""

import html
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from string import Template
from typing import Any, NamedTuple

from rich.color import Color
from rich.style import Style
from rich.text import Text

CREDIT_FILE = "credit.jsonl"
_COMPLETIONS = 8  # of a group; a group of 64 would make the file large and the page long
_WINDOW, _OVERLAP = 8, 2  # tokens

_UP, _DOWN = (
    (86, 180, 233),
    (230, 159, 0),
)  # Okabe and Ito's sky blue and orange: apart for the colour-blind as well
# Control characters of a completion would steer the terminal, or be dropped by a browser.
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
_PICTURES |= dict.fromkeys(range(128, 160), 0xFFFD)


@dataclass(frozen=True)
class Completion:
    """One completion: its tokens, the advantage of each, the positions of special tokens, and its weighted reward."""

    tokens: list[str]
    advantages: list[float]
    special: list[int]
    reward: float | None


@dataclass(frozen=True)
class Group:
    """Completions of one prompt, as trained on for a step."""

    step: int
    prompt: str
    completions: list[Completion]

    @classmethod
    def of(cls, row: dict[str, Any]) -> "Group":
        """A line of `credit.jsonl`."""
        return cls(
            row["step"],
            row["prompt"],
            [Completion(**completion) for completion in row["completions"]],
        )

    @property
    def scale(self) -> float:
        """The largest |advantage|: full colour."""
        return max(
            (abs(value) for one in self.completions for value in one.advantages), default=0.0
        )


class Piece(NamedTuple):
    """A token as it is shown; `starts_step` where its advantage is not that of the token before."""

    text: str
    advantage: float
    special: bool
    starts_step: bool


def credited_group(
    batch: dict[str, Any], rewards: Sequence[float | None], *, step: int, size: int, tokenizer: Any
) -> Group:
    """The first group of a batch that has a signal, else the first; at most 8 completions, in the batch's order.

    A token that the loss leaves out, as the answer of a tool, has advantage 0; of the rest four digits are kept.
    """
    advantages, mask = batch["advantages"], batch["completion_mask"]
    advantages = advantages if advantages.ndim == 2 else advantages[:, None]
    per_token = advantages * mask * batch.get("tool_mask", 1)  # (B, C)
    size = min(size, len(per_token))  # a group may span processes
    whole = len(per_token) // size
    first = size * int(per_token[: whole * size].reshape(whole, -1).any(1).int().argmax())
    special = {
        *tokenizer.all_special_ids,
        *(i for i, t in tokenizer.added_tokens_decoder.items() if t.special),
    }
    completions = []
    for row in range(first, first + min(size, _COMPLETIONS)):
        kept = mask[row].bool()
        ids = batch["completion_ids"][row][kept].tolist()
        completions.append(
            Completion(
                tokens=token_texts(tokenizer.decode, ids),
                advantages=[float(f"{value:.4g}") for value in per_token[row][kept].tolist()],
                special=[position for position, token in enumerate(ids) if token in special],
                reward=rewards[row],
            )
        )
    prompt = batch["prompt_ids"][first][batch["prompt_mask"][first].bool()].tolist()
    return Group(step, tokenizer.decode(prompt), completions)


def token_texts(decode: Callable[[list[int]], str], ids: list[int]) -> list[str]:
    """The text of each token, so that together they are exactly `decode(ids)`.

    Tokens that hold parts of a character have "", but for the one that completes it. Each token is decoded with a few
    before it, because some tokenizers drop a space at the start of a text.
    """
    whole, texts, done = decode(ids), [], 0
    anchor = offset = 0  # ids[anchor:] have their text from `offset`
    for end in range(1, len(ids) + 1):
        seen = decode(ids[anchor:end])
        pairs = zip(
            seen, whole[offset : offset + len(seen)], strict=False
        )  # part of a character is another one
        reached = max(
            done, offset + sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        )
        texts.append(whole[done:reached])
        done = reached
        if end - anchor >= _WINDOW:
            tail = decode(ids[end - _OVERLAP : end])
            if tail and whole.endswith(tail, 0, done):  # not in the middle of a character
                anchor, offset = end - _OVERLAP, done - len(tail)
    if texts:
        texts[-1] += whole[done:]
    return texts


def pieces(completion: Completion) -> Iterator[Piece]:
    """The tokens that have a text."""
    before = None
    for position, (text, advantage) in enumerate(
        zip(completion.tokens, completion.advantages, strict=True)
    ):
        if text:
            starts_step = before is not None and advantage != before
            yield Piece(
                text.translate(_PICTURES), advantage, position in completion.special, starts_step
            )
            before = advantage


def share(advantage: float, scale: float) -> float:
    """How much colour an advantage has: from -1 (full orange) over 0 (none) to 1 (full blue).

    >>> share(0.5, 2.0), share(-2.0, 2.0), share(0.0, 0.0)
    (0.25, -1.0, 0.0)
    """
    return advantage / scale if scale else 0.0


def colour(portion: float) -> tuple[int, int, int]:
    """A share as red, green and blue, from white; black text can be read on all of them."""
    red, green, blue = (
        round(255 + (full - 255) * abs(portion)) for full in (_UP if portion > 0 else _DOWN)
    )
    return red, green, blue


def summary(completion: Completion) -> str:
    """Reward and advantages in words.

    >>> summary(Completion(["a", "b"], [0.5, -1.0], [], 1.0))
    'reward 1.000, advantages -1.000 to +0.500'
    """
    reward = "-" if completion.reward is None else f"{completion.reward:.3f}"
    if not completion.advantages:
        return f"reward {reward}, left out of the loss"
    low, high = min(completion.advantages), max(completion.advantages)
    return f"reward {reward}, " + (
        f"advantage {low:+.3f}" if low == high else f"advantages {low:+.3f} to {high:+.3f}"
    )


def to_text(group: Group) -> Text:
    """A group for a terminal: the advantage as background, ⏎ and · for white space, │ where the advantage changes."""
    text = Text(f"step {group.step}  ")
    for portion in (-1.0, -0.5, 0.0, 0.5, 1.0):
        text.append(f" {portion * group.scale + 0.0:+.3g} ", _style(portion))  # no -0
    text.append(f"  │ a step ends\n\n{group.prompt.translate(_PICTURES)}\n", "dim")
    for number, completion in enumerate(group.completions, 1):
        text.append(f"\ncompletion {number}: {summary(completion)}\n", "bold")
        for piece in pieces(completion):
            shown = (
                piece.text.replace(" ", "·").replace("\t", "⇥")
                if piece.text.isspace()
                else piece.text
            )
            text.append("│" if piece.starts_step else "")
            style = _style(share(piece.advantage, group.scale))
            text.append(
                shown.replace("\n", "⏎\n"), style + Style(bold=True) if piece.special else style
            )
        text.append("\n")
    return text


def _style(portion: float) -> Style:
    return (
        Style(color=Color.from_rgb(0, 0, 0), bgcolor=Color.from_rgb(*colour(portion)))
        if portion
        else Style()
    )


def to_html(groups: Sequence[Group]) -> str:
    """Groups as one page that needs nothing else; the number of each token is in its tooltip.

    The marks of white space are drawn by the style sheet, so that what is copied from the page is the completion.
    """
    return _PAGE.substitute(body="\n".join(map(_section, groups)))


def _section(group: Group) -> str:
    lines = [
        f'<section><h2>Step {group.step}</h2>\n<p class="legend">{0 - group.scale:+.3g} <span class="bar"></span> '
        f'{group.scale:+.3g} <span class="step"></span> a step ends</p>',
        f'<details><summary>Prompt</summary><div class="prompt" dir="auto">{_escaped(group.prompt)}</div></details>',
    ]
    for number, completion in enumerate(group.completions, 1):
        spans = "".join(
            _span(piece, share(piece.advantage, group.scale)) for piece in pieces(completion)
        )
        lines.append(f"<h3>Completion {number}: {summary(completion)}</h3>")
        lines.append(f'<div class="completion" dir="auto">{spans}</div>')
    return "\n".join([*lines, "</section>"])


def _span(piece: Piece, portion: float) -> str:
    marks = {
        "up": portion > 0,
        "down": portion < 0,
        "special": piece.special,
        "step": piece.starts_step,
    }
    classes = " ".join(name for name, present in marks.items() if present)
    text = _escaped(piece.text)
    text = text.replace(" ", '<i class="space"> </i>') if piece.text.isspace() else text
    text = text.replace("\n", '<i class="line">\n</i>')
    return f'<span class="{classes}" style="--share:{abs(portion):.3f}" title="{piece.advantage:+.4g}">{text}</span>'


def _escaped(text: str) -> str:
    return html.escape(text.translate(_PICTURES))


_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Token credit</title>
<style>
:root { color-scheme: light dark; --up: 86 180 233; --down: 230 159 0; --ink: #111; --paper: #fff; }
@media (prefers-color-scheme: dark) { :root { --up: 0 95 155; --down: 165 75 0; --ink: #eee; --paper: #111; } }
body { color: var(--ink); background: var(--paper); font: 1rem/1.6 system-ui, sans-serif; max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 0.3rem; }
.prompt, .completion { font-family: ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
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
<p>Each token with the advantage that it was trained on: blue was made likelier, orange less likely. Full colour is the
largest advantage of the group; the number is in the tooltip.</p>
$body
</body>
</html>
""")
