"""The loggers of other makers that a run reports to: are they installed?

What they get is what `metrics.jsonl` has; transformers puts `train/` and `eval/` before the names.
"""

from typing import Any

from transformers.integrations import (
    get_available_reporting_integrations,
    get_reporting_integration_callbacks,
)

from ..errors import ConfigError, did_you_mean

# The package of each logger whose absence transformers would find after the model has loaded.
_PACKAGES = {
    "clearml": "clearml",
    "codecarbon": "codecarbon",
    "dvclive": "dvclive",
    "mlflow": "mlflow",
    "swanlab": "swanlab",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
}


def check_report_to(args: Any) -> None:
    """Check that every logger of `report_to` is known and installed.

    Raises:
        ConfigError: one is not.
    """
    # In settings that were not read by transformers it may be a text or None.
    names = [args.report_to] if isinstance(args.report_to, str) else args.report_to or []
    try:
        get_reporting_integration_callbacks(names)
    except ValueError as error:
        hints = "".join(did_you_mean(name, _PACKAGES) for name in names if name not in _PACKAGES)
        raise ConfigError(f"report_to: {error}{hints}") from error
    # Asking imports them, which takes seconds.
    missing = set(names) & set(_PACKAGES)
    missing -= set(get_available_reporting_integrations()) if missing else set()
    for name in sorted(missing):
        raise ConfigError(
            f"report_to names {name}, which is not installed. Install it (pip install "
            f"{_PACKAGES[name]}), or leave it out: --report_to none."
        )
