"""The number of bytes that weights, products and an adapter take for each value: `Precision`."""

from dataclasses import dataclass
from typing import Any

_BYTES = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2, "fp32": 4, "bf16": 2}
# bitsandbytes 0.50 keeps one float32 for every 64 weights of 4 bits; nested, one byte.
_FOUR_BITS = 0.5 + 4 / 64
_FOUR_BITS_NESTED = 0.5 + 1 / 64
_EIGHT_BITS = 1.0


@dataclass(frozen=True)
class Precision:
    """Bytes per value.

    Args:
        weights: of the base where it is not quantized.
        quantized: of a weight of a quantized matrix; None where none is.
        products: of what a matrix product returns.
        adapter: of what trains.
        autocast: whether the run computes in half precision, whatever the weights are.
    """

    weights: int
    quantized: float | None
    products: int
    adapter: int
    autocast: bool

    @classmethod
    def of(cls, model_args: Any, config: Any, *, autocast: bool) -> "Precision":
        """Read it from the settings of a run.

        Args:
            model_args: TRL's `ModelConfig`.
            config: of the model, which says what "auto" means.
        """
        weights = _BYTES.get(_name_of(model_args.dtype, config), 4)
        quantized = None
        if model_args.load_in_4bit:
            nested = model_args.use_bnb_nested_quant
            quantized = _FOUR_BITS_NESTED if nested else _FOUR_BITS
        elif model_args.load_in_8bit:
            quantized = _EIGHT_BITS
        # TRL 1.16 makes the adapter of a quantized base bf16; PEFT makes others float32.
        adapter = 2 if quantized is not None else 4
        if not model_args.use_peft:
            adapter = weights
        return cls(weights, quantized, 2 if autocast else weights, adapter, autocast)

    @classmethod
    def four_bits(cls, weights: int, *, autocast: bool) -> "Precision":
        """Return that of a base of 4 bits whose other weights take so many bytes."""
        return cls(weights, _FOUR_BITS, 2 if autocast else weights, 2, autocast)

    @property
    def stream(self) -> int:
        """Bytes of a value that goes from layer to layer."""
        return self.weights

    @property
    def adapter_products(self) -> int:
        """Bytes of a value in the adapter's products."""
        return 2 if self.autocast else self.adapter

    @property
    def casts_for_adapter(self) -> bool:
        """Return whether every adapted matrix makes a copy of its input.

        PEFT 0.21 casts inputs to the adapter's type, and autocast to its own.
        """
        if self.quantized is not None and self.autocast:
            return self.adapter != 2 or self.weights == 4
        return self.adapter != self.weights or (self.autocast and self.adapter == 4)


def _name_of(dtype: Any, config: Any) -> str:
    """Return the name of a type of weights, as `float32`."""
    if dtype in (None, "auto"):
        dtype = getattr(config.get_text_config(), "dtype", None)
    return str(dtype).removeprefix("torch.")
