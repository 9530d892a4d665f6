"""How long a text may be: a model's context, and rotary positions that change with the length."""

from collections.abc import Iterator, Mapping
from typing import Any

# transformers 5.23: the types whose frequencies depend on the longest text of a batch.
_BY_LENGTH = ("dynamic", "longrope")
# Where the length stands from which on they do: beside the type, or in the configuration itself.
_LENGTHS = ("original_max_position_embeddings", "max_position_embeddings")


def context_of(config: Any) -> int | None:
    """Return how many tokens a model reads at most.

    Some architectures have no limit, such as state-space models: it is None then.

    Args:
        config: of a model, of which the part that reads text counts.
    """
    limit: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit or None


def stretching_positions(config: Any) -> Iterator[tuple[str, int]]:
    """Find rotary positions that are stretched in long texts, and the length from which they are.

    Args:
        config: of the text model.

    Yields:
        The type, and a number of tokens; a configuration may name several for one type.
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    # One set for all layers, or one for each kind of layer.
    sets = [each for each in parameters.values() if isinstance(each, Mapping)] or [parameters]
    for each in sets:
        kind = each.get("rope_type")
        if kind not in _BY_LENGTH:
            continue
        for holder in (each, config.to_dict()):
            for name in _LENGTHS:
                if holder.get(name):
                    yield kind, holder[name]
