"""Models with the user's options for prediction, see `ubend.portable.mask_predictor`."""

from pathlib import Path

from ubend.inference.ensemble import Ensemble, load
from ubend.inference.predictor import Predictor
from ubend.portable import mask_predictor as portable
from ubend.portable.ensemble import Member

MaskPredictor = portable.MaskPredictor[Predictor]


def load_mask_predictor(model: Path | str, device: str | None, options: portable.PredictionOptions) -> MaskPredictor:
    """Load the models; for arguments and errors see `ensemble.load` and `make_mask_predictor`."""
    models = [model, *options.models]
    base = load(models, device=device, tta=options.tta, tiles=options.tiles, overlap=options.overlap)
    members = base.members if isinstance(base, Ensemble) else [Member(base)]
    return portable.make_mask_predictor(base, members, models, options)
