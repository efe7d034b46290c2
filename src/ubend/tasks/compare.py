"""Compare models that were scored on the same test images."""

from collections.abc import Sequence
from pathlib import Path

from ubend.core.files import refuse_existing, write_json
from ubend.core.i18n import _
from ubend.evaluation.comparison import Comparison, compare_scores, read_scores
from ubend.evaluation.intervals import MARGIN
from ubend.evaluation.score_tables import Scores


def compare(
    runs: Sequence[Path | str | Scores], *, margin: float = MARGIN, out: Path | str | None = None
) -> Comparison:
    """Compare models on the same images; for arguments and errors see `ubend.compare`, where `out` is `json`."""
    refuse_existing([] if out is None else [Path(out)])
    runs = [runs] if isinstance(runs, str | Path | Scores) else runs  # one alone is refused below
    scores_of = {
        _("scores {number}").format(number=number) if isinstance(run, Scores) else str(run): (
            run if isinstance(run, Scores) else read_scores(Path(run))
        )
        for number, run in enumerate(runs, start=1)
    }
    comparison = compare_scores(scores_of, margin)
    if out is not None:
        write_json(Path(out), comparison.to_dict())
    return comparison
