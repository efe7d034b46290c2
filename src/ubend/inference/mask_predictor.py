"""Models with the user's options for prediction, see `ubend.portable.conditions`."""

from pathlib import Path

from ubend.inference.ensemble import Ensemble, load
from ubend.inference.predictor import Predictor
from ubend.portable import conditions as portable
from ubend.portable.ensemble import Member

MaskPredictor = portable.MaskPredictor[Predictor]


def load_mask_predictor(model: Path | str, device: str | None, conditions: portable.Conditions) -> MaskPredictor:
    """Load the models; for arguments and errors see `ensemble.load` and `make_mask_predictor`."""
    models = [model, *conditions.models]
    base = load(models, device=device, tta=conditions.tta, tiles=conditions.tiles, overlap=conditions.overlap)
    members = base.members if isinstance(base, Ensemble) else [Member(base)]
    return portable.make_mask_predictor(base, members, models, conditions)
