"""ubend: a folder of images and masks in; a trained, honestly scored, self-describing U-Net out.

    import ubend

    result = ubend.fit("my-folder", "runs/first")      # train and score
    predictor = ubend.load("runs/first")               # use the model
    mask = predictor("picture.jpg").mask               # (H, W) uint8 class index
    net = ubend.UNet(channels=3, classes=2)            # the network alone, a plain nn.Module

Names are imported when first used, so that `import ubend` does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ubend._version import __version__ as __version__

if TYPE_CHECKING:
    from ubend.core.errors import UbendError as UbendError
    from ubend.dataset.sample import draw_sample as draw_sample
    from ubend.inference.ensemble import Ensemble as Ensemble
    from ubend.inference.ensemble import load as load
    from ubend.inference.prediction import Prediction as Prediction
    from ubend.inference.predictor import Predictor as Predictor
    from ubend.labels.class_table import IGNORED as IGNORED
    from ubend.labels.class_table import LabelMap as LabelMap
    from ubend.models.unet import UNet as UNet
    from ubend.tasks.evaluate import evaluate as evaluate
    from ubend.tasks.fit import FitResult as FitResult
    from ubend.tasks.fit import fit as fit
    from ubend.tasks.fit import resume as resume
    from ubend.tasks.reading import read_folder as read_folder
    from ubend.tasks.reading import read_image as read_image
    from ubend.tasks.reading import read_scan as read_scan

_HOMES = {
    "IGNORED": "ubend.labels.class_table",
    "Ensemble": "ubend.inference.ensemble",
    "FitResult": "ubend.tasks.fit",
    "LabelMap": "ubend.labels.class_table",
    "Prediction": "ubend.inference.prediction",
    "Predictor": "ubend.inference.predictor",
    "UNet": "ubend.models.unet",
    "UbendError": "ubend.core.errors",
    "draw_sample": "ubend.dataset.sample",
    "evaluate": "ubend.tasks.evaluate",
    "fit": "ubend.tasks.fit",
    "load": "ubend.inference.ensemble",
    "read_folder": "ubend.tasks.reading",
    "read_image": "ubend.tasks.reading",
    "read_scan": "ubend.tasks.reading",
    "resume": "ubend.tasks.fit",
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
