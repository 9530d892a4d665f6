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

# Of TRL, with a row of the data.
_NO_REWARD = "All reward functions returned None for the following kwargs"
_NO_REWARD_IN_SHORT = (
    "A completion has no reward: each reward returned None for it, or failed. It has advantage 0. "
    "Said once in a run; rewards/*/judged counts them."
)
_REWARDS_LOGGER = "trl.trainer.grpo_trainer"


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


def say_none_once() -> None:
    """Let TRL say once in the run that begins, and in one line, that nothing was judged.

    It logs a whole row at every step. Which reward failed on what is said by this library.
    """
    logger = logging.getLogger(_REWARDS_LOGGER)
    for each in list(logger.filters):
        if isinstance(each, _OnceInShort):
            logger.removeFilter(each)
    logger.addFilter(_OnceInShort(_NO_REWARD, _NO_REWARD_IN_SHORT))


class _OnceInShort(logging.Filter):
    """Lets the first line with these words pass, in other words, and no further one."""

    def __init__(self, words: str, short: str) -> None:
        super().__init__()
        self._words = words
        self._short = short
        self._was_said = False

    def filter(self, record: logging.LogRecord) -> bool:
        if self._words not in str(record.msg):
            return True
        is_first, self._was_said = not self._was_said, True
        record.msg, record.args = self._short, ()
        return is_first


def _is_other_line(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_KERNEL)
