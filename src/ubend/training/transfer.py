"""Initialise from a trained model; its classes and channels may differ."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ubend.core.errors import ModelFileError, SettingError
from ubend.core.files import model_path
from ubend.core.i18n import _
from ubend.core.settings import NO_ENCODER
from ubend.models.encoders import fit_channels
from ubend.models.model_file import Bundle, load_bundle
from ubend.training.checkpoint import TrainingState

_HEAD = ("head.weight", "head.bias")
_NORMALISATION = ("mean", "std")


@dataclass(frozen=True)
class InitialModel:
    """A trained model from which a training is initialised.

    Attributes:
        path: its file or run folder, as the user gave it.
        sha256: of the model file.
        bundle: the content of the model file.
    """

    path: Path
    sha256: str
    bundle: Bundle


def load_initial_model(path: Path) -> InitialModel:
    """Read the initial model.

    Raises:
        ModelFileError: the file is missing, truncated, not a model of ubend, of a newer version, or an ensemble.
    """
    bundle = load_bundle(path)
    if bundle.model.is_ensemble:
        line = _("{path}: contains {count} networks; give the model of one fold, such as the folder fold-1 next to it")
        raise ModelFileError(
            line.format(path=path, count=bundle.model.config()["members"]), path=path, key="network.members"
        )
    with model_path(path).open("rb") as file:
        return InitialModel(path, hashlib.file_digest(file, "sha256").hexdigest(), bundle)


def shape_settings(initial: InitialModel, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that give a network the model's shape.

    Args:
        given: what the user set, by dotted key.
    Raises:
        SettingError: one of them contradicts the model's shape.
    """
    net = initial.bundle.model
    shape: dict[str, Any] = {"model.kind": net.kind, "model.encoder": net.encoder_name or NO_ENCODER}
    shape |= {"model.pretrained": False, "model.weights": None}
    shape |= {
        "model.width": net.width,
        "model.depth": net.depth,
        "model.skips": net.skips,
        "model.upsampling": net.upsampling,
    }
    for key, theirs in shape.items():
        value = given.get(key)
        if value is not None and (tuple(value) if isinstance(value, list) else value) != theirs:
            raise SettingError(
                _(
                    "{key} = {own}, but the model {path} has {theirs}; leave this setting out, or train without --from"
                ).format(key=key, own=value, path=initial.path, theirs=_("none") if theirs is None else theirs),
                path=initial.path,
                key=key,
            )
    return shape


@torch.no_grad()
def initialise_from(initial: InitialModel, state: TrainingState, classes: Sequence[str]) -> list[str]:
    """Copy matching weights into a new state; returns lines that describe what was kept and what is new.

    The network has the model's width, depth and skip connections. Every tensor is copied, except: the first
    convolution if the number of channels differs (see `fit_channels`); in the head, only the rows of classes with the
    same name are copied; and the normalisation is that of the new images. The EMA is initialised in the same way. The
    optimizer is not changed.

    Args:
        classes: names of the new classes, in their order.
    """
    theirs, labels = initial.bundle.model.state_dict(), initial.bundle.labels
    first = initial.bundle.model.first_weight()
    rows = match_class_names(labels.names, classes)
    for net in (state.model, state.ema):
        for name, tensor in net.state_dict().items():
            if name in _HEAD:
                for row, their_row in enumerate(rows):
                    if their_row is not None:
                        tensor[row].copy_(theirs[name][their_row])
            elif name == first:
                tensor.copy_(fit_channels(theirs[name], tensor.shape[1]))
            elif name not in _NORMALISATION:
                tensor.copy_(theirs[name])
    return _report(initial, classes, rows, theirs[first].shape[1], int(state.model.state_dict()[first].shape[1]))


def match_class_names(known: Sequence[str], wanted: Sequence[str]) -> list[int | None]:
    """For each wanted class the index of the known class with that name, ignoring case; None: no match."""
    first_wins = list(enumerate(known))[::-1]
    exact = {name: row for row, name in first_wins}  # if two differ only in case
    folded = {name.strip().casefold(): row for row, name in first_wins}
    return [exact.get(name, folded.get(name.strip().casefold())) for name in wanted]


def _report(
    initial: InitialModel, classes: Sequence[str], rows: Sequence[int | None], before: int, now: int
) -> list[str]:
    kept = [name for name, row in zip(classes, rows, strict=True) if row is not None]
    new = [name for name, row in zip(classes, rows, strict=True) if row is None]
    gone = [name for index, name in enumerate(initial.bundle.labels.names) if index not in rows]
    none = _("none")
    lines = [
        _("initialised from {path}: all weights between the first convolution and the head are kept").format(
            path=initial.path
        ),
        _("classes kept: {kept}; new: {new}; dropped: {gone}").format(
            kept=", ".join(kept) or none, new=", ".join(new) or none, gone=", ".join(gone) or none
        ),
    ]
    if before == now:
        lines.append(_("first convolution: kept, {channels} channels").format(channels=now))
    else:
        lines.append(_("first convolution: {before} channels spread evenly over {now}").format(before=before, now=now))
    return [*lines, _("new: the normalisation (of these images) and the optimizer's state")]
