"""A model card that a run has written, read back."""

import re


def code_of(card: str) -> str:
    """Return the program that loads the model of a card."""
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return code
