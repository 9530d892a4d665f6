"""Ways to tear a file of a checkpoint: what a full disk, a lost power or a bad block leaves."""

from pathlib import Path

FILES = [
    *("adapter_config.json", "adapter_model.safetensors", "optimizer.pt", "scheduler.pt"),
    *("trainer_state.json", "rng_state.pth", "run_state_0.pt", "training_args.bin"),
    *("tokenizer.json", "manifest.json"),
]


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def zero(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


TEARS = [(tear, name) for name in FILES for tear in (Path.unlink, cut, empty, flip, zero)]
