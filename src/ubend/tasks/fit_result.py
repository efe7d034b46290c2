"""The result of a training in Python."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ubend.evaluation.score_tables import Scores
from ubend.inference.predictor import Predictor, load


@dataclass(frozen=True)
class FitResult:
    """The result of a training.

    Attributes:
        run: the run folder: the model, its scores, settings, data list, logs.
        scores: scores of the kept weights on the test split, as in scores.json; None if training was interrupted
            before scoring, and in all processes but the first.
    """

    run: Path
    scores: Scores | None

    def model(self, *, device: str | None = None, network: nn.Module | None = None) -> Predictor:
        """The trained model, ready to predict.

        Args:
            device: cuda, cuda:1, mps or cpu; None: the fastest here.
            network: your own network, if that was trained; its weights are replaced.
        Raises:
            ModelFileError: training was interrupted before it saved a model.
            SettingError: there is no such device.
        """
        return load(self.run, device, network=network)
