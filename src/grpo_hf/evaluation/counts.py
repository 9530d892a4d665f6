"""Numbers of a comparison as the file of an evaluation keeps them."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Self


@dataclass(frozen=True)
class Counts:
    """Numbers with names: each field of a subclass is an `int` or a `float`."""

    @classmethod
    def of(cls, row: Any) -> Self | None:
        """Return what a file holds, or None where it holds nothing of that kind."""
        numbers: dict[str, Any] = {}
        try:
            for field in fields(cls):
                kind: Any = field.type
                numbers[field.name] = kind(row[field.name])
        except (TypeError, KeyError, ValueError):
            return None
        return cls(**numbers)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
