"""What takes memory, as terms that name their tensors and shapes."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

GIB = 2**30
MIB = 2**20

# The letters of the shapes, for readers of a plan.
_LETTERS = {
    "T": "tokens of a forward",
    "L": "layers",
    "D": "width of the model",
    "H": "heads",
    "K": "heads of keys and values",
    "d": "width of a head",
    "I": "width inside a feed-forward part",
    "r": "lora_r",
    "V": "vocabulary",
    "S": "tokens whose logits are taken",
    "R": "completions",
    "B": "rows of a micro-batch",
    "P": "tokens of a prompt",
    "C": "tokens of a completion",
    "N": "prompts",
}
_SHAPE = re.compile(r"\(([^()]*)\)|(\d) ([A-Z]) times")
_LETTER = re.compile(r"\b[A-Za-z]\b")


@dataclass(frozen=True)
class Term:
    """Tensors of one kind.

    Args:
        group: what it belongs to, such as `weights` or `activations`.
        source: which tensors, and their shape.
        size: bytes.
    """

    group: str
    source: str
    size: int


@dataclass(frozen=True)
class Phase:
    """A part of a step, with all that is in memory at its peak."""

    name: str
    terms: tuple[Term, ...]

    @property
    def size(self) -> int:
        """Bytes of all terms."""
        return sum(term.size for term in self.terms)

    def of_group(self, group: str) -> int:
        """Bytes of the terms of one group."""
        return sum(term.size for term in self.terms if term.group == group)


def groups_of(phases: Iterable[Phase]) -> list[str]:
    """Return the groups of some phases, in the order of their appearance."""
    names: list[str] = []
    for phase in phases:
        for term in phase.terms:
            if term.group not in names:
                names.append(term.group)
    return names


def letters_of(sources: Iterable[str]) -> str:
    """Return what the letters mean that occur in the shapes of some terms.

    >>> letters_of(["logits of the next token and their shares (R, V)", "the base"])
    'V vocabulary, R completions'
    """
    shapes = " ".join(found.group() for source in sources for found in _SHAPE.finditer(source))
    used = set(_LETTER.findall(shapes))
    return ", ".join(f"{letter} {text}" for letter, text in _LETTERS.items() if letter in used)
