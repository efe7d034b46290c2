"""Files without content, for what is read from names."""

from pathlib import Path


def touch(*paths: Path) -> None:
    """Files that are not empty; layouts are read from names."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
