"""Whether PEFT can put an adapter on a model, found out on a model without weights."""

from copy import deepcopy
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from ..errors import ConfigError, did_you_mean


def check_adapter_fits(
    adapter: PeftConfig, config: Any, *, trust_remote_code: bool = False
) -> None:
    """Check that PEFT accepts an adapter for the model that a configuration describes.

    A model that cannot be built without its weights is left to the training.

    Raises:
        ConfigError: what PEFT says, and what the matrices of the model are called.
    """
    try:
        with torch.device("meta"):
            # Building a model writes into its configuration.
            model = AutoModelForCausalLM.from_config(
                deepcopy(config), trust_remote_code=trust_remote_code
            )
    # transformers raises all kinds of errors about models that it cannot build.
    except Exception:
        return
    names = _matrices(model)
    try:
        with torch.device("meta"):
            get_peft_model(model, deepcopy(adapter))
    except ValueError as error:
        reason = str(error).partition("\n")[0]
        targets = getattr(adapter, "target_modules", None) or ()
        # TRL makes a text of a list with one name.
        given = {targets} if isinstance(targets, str) else set(targets)
        hints = "".join(did_you_mean(name, names) for name in sorted(given - set(names)))
        raise ConfigError(
            f"the adapter does not fit the model: {reason}{hints} Its matrices are called "
            f"{', '.join(names)}; --lora_target_modules all-linear takes all but the head."
        ) from error
    # What fails without weights may work with them.
    except Exception:
        return


def _matrices(model: nn.Module) -> list[str]:
    """Return the last part of the names of a model's linear layers, each once."""
    names: dict[str, None] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            names[name.rpartition(".")[2]] = None
    return list(names)
