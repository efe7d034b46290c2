"""Command-line options and Python arguments -> settings."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ubend.core.errors import SettingError
from ubend.core.files import default_cache
from ubend.core.i18n import _
from ubend.core.progress import Reporter
from ubend.core.settings import (
    NO_ENCODER,
    UNET_DEPTH,
    Recipe,
    Settings,
    change_settings,
    flatten,
    make_settings,
    read_config,
)
from ubend.dataset.arrays import arrays_to_files
from ubend.dataset.named_sets import find_dataset, named_set
from ubend.layouts.layouts import list_root
from ubend.layouts.tree import holds_description
from ubend.portable.printable import shell_word
from ubend.training.run_folder import RunFolder

if TYPE_CHECKING:
    from ubend.training.transfer import InitialModel

# Options of the command line and of `ubend.fit(...)`, and their settings.
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
    "encoder": "model.encoder",
    "loss": "train.loss",
    "epochs": "train.epochs",
    "batch": "train.batch",
    "patience": "train.patience",
    "seed": "train.seed",
    "device": "device",
    "deterministic": "train.deterministic",
    "track": "train.track",
    "init_from": "train.init_from",
    "effort": "train.effort",
    "folds": "data.folds",
    "leave_out": "data.leave_out",
    "seeds": "train.seeds",
    "test": "data.test",
}
SeveralKey = Literal["data.folds", "train.seeds"]
_PLACE = ("data.folder", "data.images", "data.masks")  # where the data is
_MEANING = ("data.classes", "data.values")  # the meaning of its masks
# made absolute, since a run may be resumed from another folder
_PATHS = ("data.images", "data.masks", "data.split", "model.weights", "train.init_from")


class UserSettings(NamedTuple):
    """The settings and the initial model that a user requests.

    Attributes:
        settings: validated; open ones are chosen later.
        initial: the initial model, if any.
    """

    settings: Settings
    initial: "InitialModel | None"


def read_user_settings(
    folder: Path | str | None,
    recipe: Recipe | None = None,
    config: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    flags: Mapping[str, Any] | None = None,
    reporter: Reporter | None = None,
) -> UserSettings:
    """Combine all settings; precedence: `data.toml` < a `config` file < flags < `settings`.

    A `config` file may be of other data than `folder`, or than the images in the flags or settings. Then its paths and
    its split are not used; nor are its classes and values, if a `data.toml` has some.

    A named data set is downloaded if needed, after everything else has been validated.

    Args:
        folder: images and masks, or the name of a data set, or a `data.toml` written by `ubend data`, or None.
        recipe, config, settings, flags: see `ubend.fit`.
        reporter: reports downloads and unused keys of the `config` file.
    Raises:
        SettingError: an unknown option, or an invalid value.
        ModelFileError: the initial model cannot be used.
        DataError: see `find_dataset` and `arrays_to_files`.
    """
    flags, described = arrays_to_files(flags or {}, default_cache()), dict[str, Any]()
    if folder is not None and _is_description(folder):
        described = dict(flatten(read_config(Path(folder))))
    elif folder is not None:
        _refuse_run(Path(folder))
        described = {"data.folder": str(folder)}
    given = dict(described)
    if config is not None:
        explicit = {FLAGS.get(key, key): value for key, value in [*flags.items(), *(settings or {}).items()]}
        given |= _read_rest(Path(config), described, explicit, reporter)
    typed = {FLAGS[flag]: flag for flag, value in flags.items() if flag in FLAGS and value is not None}
    if flags.pop("patches", None):
        size = flags.pop("size", None)
        typed |= {} if size is None else {"data.crop": "size"}
        given |= {"data.resize": "native", "data.crop": given.get("data.crop") if size is None else size}
        given.pop("data.size", None)  # from a file
    skips, root = flags.pop("skips", None), flags.pop("root", None)
    changes = {FLAGS.get(key, key): value for key, value in flags.items() if value is not None}
    for key in ("data.classes", "data.values"):
        if isinstance(changes.get(key), str):
            changes[key] = tuple(word.strip() for word in changes[key].split(","))
    given |= changes | dict(settings or {})
    given |= {key: str(given[key]) for key in _PATHS if given.get(key) is not None}
    initial = _load_initial_model(given.get("train.init_from"))
    given |= {key: _absolute(given[key]) for key in _PATHS if given.get(key) is not None}
    if initial is None and isinstance(given.get("model.encoder"), str) and given["model.encoder"] != NO_ENCODER:
        from ubend.models.encoders import encoder_channels

        with _flags_named_in_errors(typed, settings or {}):
            given.setdefault("model.depth", max(encoder_channels(given["model.encoder"])) - 1)  # all its levels
    if skips is not None:
        depth = initial.bundle.model.depth if initial else given.get("model.depth", UNET_DEPTH)
        if isinstance(depth, int):  # else it is refused below
            given["model.skips"] = parse_skips(skips, depth)
    if initial is not None:
        from ubend.training.transfer import shape_settings

        given |= shape_settings(initial, given)
    with _flags_named_in_errors(typed, settings or {}):
        chosen = make_settings(recipe, given)
    if root is not None or chosen.data.folder is not None:
        chosen = _with_dataset(chosen, root, reporter or Reporter())
    return UserSettings(chosen, initial)


def _is_description(folder: Path | str) -> bool:
    """Whether this is a `data.toml` instead of a folder."""
    return Path(folder).suffix == ".toml" and Path(folder).is_file()


def _refuse_run(folder: Path) -> None:
    """Raise SettingError if a run, or the folder of a `data.toml`, is given in place of the data."""
    if RunFolder(folder).facts.is_file():
        line = _(
            "{folder} is a run, not a folder of images and masks; to continue it: `ubend fit --resume {folder}`; to "
            "start from its model: `ubend fit FOLDER --from {folder}`"
        )
        raise SettingError(line.format(folder=shell_word(folder)), path=folder, key="data.folder")
    if holds_description(folder):
        line = _("{folder} describes images and masks elsewhere; give its file: {folder}/data.toml")
        raise SettingError(line.format(folder=folder), path=folder, key="data.folder")


@contextmanager
def _flags_named_in_errors(typed: Mapping[str, str], settings: Mapping[str, Any]) -> Iterator[None]:
    """Name the flag instead of the setting in errors about a value that was given by a flag.

    Args:
        typed: setting -> the flag that gave it.
        settings: given as settings, which win over flags.
    """
    try:
        yield
    except SettingError as error:
        line = str(error)
        for key, flag in typed.items():
            if key not in settings:
                name = "from" if flag == "init_from" else flag.replace("_", "-")
                line = re.sub(rf"(^|; ){re.escape(key)}: ", rf"\1--{name}: ", line)
        raise SettingError(line, path=error.path, key=error.key) from error


def asks_for_several(
    folder: Path | str | None,
    config: Path | str | None,
    settings: Mapping[str, Any] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> SeveralKey | None:
    """The setting by which these arguments of `read_user_settings` ask for several trainings; None: for one.

    `data.folds` also stands for `data.leave_out` and `train.effort` = best.

    Raises:
        SettingError: a file cannot be read.
    """
    given = dict[str, Any]()
    files = [folder] if folder is not None and _is_description(folder) else []
    files += [config] if config is not None and Path(config).is_file() else []  # a missing one is reported later
    for file in files:
        given |= dict(flatten(read_config(Path(file))))
    given |= {FLAGS.get(key, key): value for key, value in (flags or {}).items() if value is not None}
    given |= dict(settings or {})
    if given.get("data.held_out") is not None:
        return None
    folds = given.get("data.folds"), given.get("data.leave_out")
    if folds != (None, None) or given.get("train.effort") == "best":
        return "data.folds"
    return None if given.get("train.seeds") in (None, 1) else "train.seeds"


def _read_rest(
    config: Path, described: Mapping[str, Any], explicit: Mapping[str, Any], reporter: Reporter | None
) -> dict[str, Any]:
    """The settings of a file, without those of data that is named explicitly instead.

    Args:
        described: settings from FOLDER: the folder, or the content of a `data.toml`.
        explicit: flags and settings, by dotted key.
    """
    given = dict(flatten(read_config(config)))
    named = {key: table[key] for table in (described, explicit) for key in _PLACE if table.get(key) is not None}
    if named.keys().isdisjoint(("data.folder", "data.images")):
        return given
    is_same = all(key in given and _absolute(str(given[key])) == _absolute(value) for key, value in named.items())
    replaced = [] if is_same else [*_PLACE, "data.split"]
    if not described.keys().isdisjoint(_MEANING):
        replaced += ["data.split", *_MEANING]
    unused = [key for key in dict.fromkeys(replaced) if key in given and given[key] != described.get(key)]
    if unused:
        message = _("note: not used from {config}: {keys}; the data that is named explicitly is used instead")
        (reporter or Reporter()).report(message.format(keys=", ".join(unused), config=config))
    return {key: value for key, value in given.items() if key not in unused}


def _load_initial_model(path: str | None) -> "InitialModel | None":
    """Read the initial model."""
    if path is None:
        return None
    from ubend.training.transfer import load_initial_model

    return load_initial_model(Path(path))


def _with_dataset(settings: Settings, root: Path | str | None, reporter: Reporter) -> Settings:
    """Resolve a named data set: its folder, and its classes and channels unless they are set."""
    name, classes, channels = settings.data.folder or "", settings.data.classes, settings.data.channels
    known = named_set(name, root)
    if known is not None:
        classes = classes or (known.classes if settings.data.values is None else None)
        channels = channels or known.channels
    with reporter:
        folder = find_dataset(name, root, reporter)
    return change_settings(
        settings, {"data.folder": _absolute(folder), "data.classes": classes, "data.channels": channels}
    )


def _absolute(path: Path | str) -> str:
    return str(Path(path).expanduser().absolute())


def source_name(settings: Settings) -> str:
    """A name for new folders: the data folder, or the folder of the images."""
    data = settings.data
    if data.folder is None and data.images is not None and data.masks is not None:
        return str(list_root(data.images, data.masks))
    return data.folder or "pictures"


def parse_skips(skips: str | Sequence[bool], depth: int) -> tuple[bool, ...]:
    """`all`, `none`, or levels such as `1,2` -> for each level, full size first, whether its skip connection is
    kept."""
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
            _("--skips {text}: give all, none, or levels from 1 to {depth}").format(text=skips, depth=depth),
            key="model.skips",
        )
    return tuple(level in levels for level in range(1, depth + 1))
