"""The metadata of installed packages, as entry points are found in it."""

from collections.abc import Mapping
from pathlib import Path


def write_distribution(folder: Path, name: str, groups: Mapping[str, Mapping[str, str]]) -> None:
    """The metadata of an installed package: entry points by group and name."""
    place = folder / f"{name}-1.0.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    lines = [
        line
        for group, entries in groups.items()
        for line in (f"[{group}]", *(f"{k} = {v}" for k, v in entries.items()))
    ]
    (place / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
