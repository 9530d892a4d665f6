"""Warnings of other libraries about what no user of this one has written, named one by one."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Of transformers 5.23, whose old names TRL 1.16 calls.
_OLD_NAMES = r"`(is_gradient|gradient)_checkpointing(_enable|_disable)?` is deprecated"
# Of bitsandbytes, about a kernel that it then does without.
_KERNEL = "Failed to load CPU gemm_4bit_forward from kernels-community"
_KERNEL_LOGGER = "bitsandbytes.backends.cpu.ops"


@contextmanager
def old_names() -> Iterator[None]:
    """Let TRL call old names of transformers in a block without a warning about it.

    What a user's code calls outside of the block is warned about as ever.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", _OLD_NAMES, category=FutureWarning, module=r"transformers\."
        )
        yield


def drop_kernel_line() -> None:
    """Keep one line about an optional kernel out of the log; bitsandbytes logs it on import."""
    logging.getLogger(_KERNEL_LOGGER).addFilter(_is_other_line)


def _is_other_line(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_KERNEL)
