"""A logger that speaks in the main process alone, and names the process only beside others."""

import logging
from collections.abc import MutableMapping
from typing import Any

from accelerate import PartialState
from accelerate.logging import MultiProcessAdapter


class _ProcessLog(MultiProcessAdapter):
    """accelerate's logger, without the number of the only process before every line."""

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        if PartialState().num_processes > 1:
            return super().process(msg, kwargs)
        # As the base class does, so that a line is that of the caller.
        kwargs.setdefault("stacklevel", 2)
        return msg, kwargs


def get_logger(name: str) -> MultiProcessAdapter:
    """Return the logger of that name, for lines of the main process."""
    return _ProcessLog(logging.getLogger(name), {})
