"""Masks from models that `ubend export` wrote, without torch: `load("model.onnx")("image.jpg").mask`."""

from .portable.command import main
from .portable.errors import (
    DataError,
    FilesError,
    MissingPackageError,
    ModelFileError,
    OutputError,
    SettingError,
    UbendError,
)
from .portable.model import Model, ModelEnsemble, Prediction, load
from .portable.objects import Objects

__all__ = [
    "DataError",
    "FilesError",
    "MissingPackageError",
    "Model",
    "ModelEnsemble",
    "ModelFileError",
    "Objects",
    "OutputError",
    "Prediction",
    "SettingError",
    "UbendError",
    "load",
    "main",
]
