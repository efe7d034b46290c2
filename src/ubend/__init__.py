"""ubend: trains and scores a U-Net on a folder of images and masks, and stores it in a self-describing file.

    import ubend

    result = ubend.fit("my-folder", out="runs/first")  # train and score
    print(result.scores)                               # a table of Dice and IoU
    predictor = ubend.load("runs/first")               # use the model
    mask = predictor("image.jpg").mask                 # (H, W) uint8 class index
    net = ubend.UNet(channels=3, classes=2)            # only the network, a plain nn.Module

Names are imported on first use, so that `import ubend` does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ubend.portable.version import __version__ as __version__

if TYPE_CHECKING:
    from ubend.api import compare as compare
    from ubend.api import cutout as cutout
    from ubend.api import data as data
    from ubend.api import draw_sample as draw_sample
    from ubend.api import evaluate as evaluate
    from ubend.api import export as export
    from ubend.api import fit as fit
    from ubend.api import objects as objects
    from ubend.api import predict as predict
    from ubend.api import read_folder as read_folder
    from ubend.api import report as report
    from ubend.api import resume as resume
    from ubend.core.errors import DataError as DataError
    from ubend.core.errors import FilesError as FilesError
    from ubend.core.errors import MissingPackageError as MissingPackageError
    from ubend.core.errors import ModelFileError as ModelFileError
    from ubend.core.errors import OutputError as OutputError
    from ubend.core.errors import PairError as PairError
    from ubend.core.errors import SettingError as SettingError
    from ubend.core.errors import TrainingError as TrainingError
    from ubend.core.errors import UbendError as UbendError
    from ubend.core.progress import Reporter as Reporter
    from ubend.evaluation.comparison import Comparison as Comparison
    from ubend.evaluation.score_tables import Scores as Scores
    from ubend.inference.ensemble import Ensemble as Ensemble
    from ubend.inference.ensemble import load as load
    from ubend.inference.prediction import Prediction as Prediction
    from ubend.inference.predictor import Predictor as Predictor
    from ubend.labels.class_table import IGNORED as IGNORED
    from ubend.labels.class_table import LabelMap as LabelMap
    from ubend.models.unet import UNet as UNet
    from ubend.tasks.fit_result import FitResult as FitResult
    from ubend.tasks.reading import read_image as read_image
    from ubend.tasks.reading import read_scan as read_scan

_HOMES = {
    "Comparison": "ubend.evaluation.comparison",
    "DataError": "ubend.core.errors",
    "Ensemble": "ubend.inference.ensemble",
    "FilesError": "ubend.core.errors",
    "FitResult": "ubend.tasks.fit_result",
    "IGNORED": "ubend.labels.class_table",
    "LabelMap": "ubend.labels.class_table",
    "MissingPackageError": "ubend.core.errors",
    "ModelFileError": "ubend.core.errors",
    "OutputError": "ubend.core.errors",
    "PairError": "ubend.core.errors",
    "Prediction": "ubend.inference.prediction",
    "Predictor": "ubend.inference.predictor",
    "Reporter": "ubend.core.progress",
    "Scores": "ubend.evaluation.score_tables",
    "SettingError": "ubend.core.errors",
    "TrainingError": "ubend.core.errors",
    "UNet": "ubend.models.unet",
    "UbendError": "ubend.core.errors",
    "compare": "ubend.api",
    "cutout": "ubend.api",
    "data": "ubend.api",
    "draw_sample": "ubend.api",
    "evaluate": "ubend.api",
    "export": "ubend.api",
    "fit": "ubend.api",
    "load": "ubend.inference.ensemble",
    "objects": "ubend.api",
    "predict": "ubend.api",
    "read_folder": "ubend.api",
    "read_image": "ubend.tasks.reading",
    "read_scan": "ubend.tasks.reading",
    "report": "ubend.api",
    "resume": "ubend.api",
}
__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ubend' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
