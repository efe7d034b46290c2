"""The words of the command line and of the Python functions -> settings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ubend.config import Recipe, Settings, change_settings, flatten, make_settings, read_config
from ubend.errors import SettingError
from ubend.language import _

# The words of the flags and of `ubend.fit(...)`, and the settings that they stand for.
FLAGS = {
    "images": "data.images",
    "masks": "data.masks",
    "split": "data.split",
    "classes": "data.classes",
    "values": "data.values",
    "skip_bad": "data.skip_bad",
    "channels": "data.channels",
    "size": "data.size",
    "width": "model.width",
    "epochs": "train.epochs",
    "batch": "train.batch",
    "patience": "train.patience",
    "seed": "train.seed",
    "device": "device",
    "deterministic": "train.deterministic",
}
_PATHS = ("data.folder", "data.images", "data.masks", "data.split")  # a resumed run may stand elsewhere


def gather_settings(
    folder: Path | str | None,
    recipe: Recipe | None = None,
    config: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Settings:
    """All that is told, as settings: `data.toml` < a `config` file < flags < `settings`.

    Args:
        folder: pictures and masks, or a `data.toml` written by `ubend data`, or None.
        recipe, config, settings, flags: as of `ubend.fit`.
    Raises:
        SettingError: an unknown word, or a value that does not fit.
    """
    given: dict[str, Any] = {}
    if folder is not None and Path(folder).suffix == ".toml" and Path(folder).is_file():
        given |= dict(flatten(read_config(Path(folder))))
    elif folder is not None:
        given["data.folder"] = str(folder)
    if config is not None:
        given |= dict(flatten(read_config(Path(config))))
    flags = dict(flags or {})
    skips = flags.pop("skips", None)
    changes = {FLAGS.get(key, key): value for key, value in flags.items() if value is not None}
    for key in ("data.classes", "data.values"):
        if isinstance(changes.get(key), str):
            changes[key] = tuple(word.strip() for word in changes[key].split(","))
    chosen = make_settings(recipe, given, changes | dict(settings or {}))
    if skips is not None:
        chosen = change_settings(chosen, {"model.skips": parse_skips(skips, chosen.model.depth)})
    paths = {key: getattr(chosen.data, key.removeprefix("data.")) for key in _PATHS}
    absolute = {key: str(Path(path).expanduser().absolute()) for key, path in paths.items() if path is not None}
    return change_settings(chosen, absolute)


def source_name(settings: Settings) -> str:
    """What the pictures are called, for names of new folders: the folder, or the place of the pictures."""
    return settings.data.folder or settings.data.images or "pictures"


def parse_skips(skips: str | Sequence[bool], depth: int) -> tuple[bool, ...]:
    """`all`, `none`, or levels such as `1,2` (1 is full size) -> for each level whether its skip stays."""
    if not isinstance(skips, str):
        return tuple(skips)
    if skips in ("all", "none"):
        return (skips == "all",) * depth
    try:
        levels = {int(word) for word in skips.split(",")}
    except ValueError:
        levels = {0}
    if not levels <= set(range(1, depth + 1)):
        raise SettingError(
            _("--skips {text}: give all, none, or levels from 1 to {depth}").format(text=skips, depth=depth)
        )
    return tuple(level in levels for level in range(1, depth + 1))
