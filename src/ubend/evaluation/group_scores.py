"""Scores of each group that was left out, and their mean over the groups."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ubend.evaluation.intervals import mean_intervals
from ubend.labels.class_table import LabelMap, background_class

MEASURES = ("dice", "iou")


def score_groups(scores: Mapping[str, Any], groups: Mapping[str, str], labels: LabelMap) -> dict[str, Any]:
    """The content of `left_out` in scores.json: the scores of each group, and their mean over groups.

    Every group counts the same, however many images it has. The score of a group is the mean of its images, of each
    class except the background, then over these classes.

    Args:
        scores: as from `evaluate_pairs`, of images by the models that were trained without their groups.
        groups: name of each scored image -> its group.
    Returns:
        `groups`: name of a group -> `images`, `dice`, `iou` (each an interval over its images); `dice`, `iou`: the
        interval of the mean over groups.
    """
    names = sorted({*groups.values()})
    images = {group: [name for name, image_group in groups.items() if image_group == group] for group in names}
    background = background_class(labels.names)
    classes = [name for index, name in enumerate(labels.names) if index != background]
    table, means = {group: {"images": len(images[group])} for group in names}, dict[str, list[float]]()
    for measure in MEASURES:
        for group in names:
            values = _read_values([scores["per_picture"][name][measure] for name in images[group]], classes)
            (interval,) = mean_intervals([values])
            table[group][measure] = interval.to_json()  # type: ignore[assignment]
            means.setdefault(measure, []).append(interval.mean)
    over = {m: mean_intervals([np.array(values)], groups=names)[0].to_json() for m, values in means.items()}
    return {"groups": table, **over}


def _read_values(rows: Sequence[Mapping[str, float | None]], classes: Sequence[str]) -> NDArray[np.float64]:
    """(N, C) scores, NaN where undefined."""
    return np.array([[np.nan if row[name] is None else row[name] for name in classes] for row in rows], np.float64)
