"""Examples in docstrings are code on the site, as they stand there without a heading."""

import re
from typing import Any

import griffe

_EXAMPLES = re.compile(r"^(>>> .*(?:\n(?!\s*$).*)*)", re.MULTILINE)


class Doctests(griffe.Extension):
    """Put fences around the examples of each docstring."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change a docstring when its object has been read."""
        if obj.docstring is not None:
            fenced = _EXAMPLES.sub(r"```pycon\n\1\n```", obj.docstring.value)
            obj.docstring.value = fenced
