"""The report of a run, or the comparison of several: one HTML file that needs no other files."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ubend.core.errors import OutputError, SettingError, UbendError
from ubend.core.files import refuse_existing, write_text
from ubend.core.i18n import _
from ubend.drawing.calibration import draw_calibration
from ubend.drawing.curves import draw_curve_svgs
from ubend.drawing.encoding import image_uri, svg_uri
from ubend.drawing.pages import render_page
from ubend.evaluation.comparison import Comparison, compare_scores, note_lines, read_scores, show_interval, verdict_line
from ubend.evaluation.intervals import MARGIN
from ubend.inference.predictor import Predictor, load
from ubend.io.images import load_image, resize_mask
from ubend.labels.class_table import IGNORED, LabelMap, background_class
from ubend.layouts.pairs import Pair
from ubend.portable.overlay import Color, overlay_mask
from ubend.tasks.report_advice import advise
from ubend.tasks.report_facts import RunFacts, choose_examples, different_settings, read_facts
from ubend.tasks.report_figures import Example, Figure
from ubend.tasks.report_missed import LargestMissed, draw_missed
from ubend.tasks.show import draw_error_map, error_legend, read_small
from ubend.training.run_folder import RunFolder

_CHANGED = 3  # images with the largest differences, for each pair of runs and each direction


@dataclass(frozen=True)
class Page:
    """The content of the page, for the template.

    Attributes:
        title: of the page.
        runs: one run, or those that are compared.
        comparison: of several runs.
        advice: what to do next, of one run.
        examples: (heading, images); `no_examples` is the reason if there are none.
        missed: thumbnails of missed objects.
        legend: (name, colour as #rrggbb) of classes and errors.
        network: description of the model, if it could be loaded.
        lines: verdicts and notes; `means`, `class_differences`, `differing`: Dice of each run, differences by
            class, and settings that differ, as text.
    """

    title: str
    runs: Sequence[RunFacts]
    comparison: Comparison | None = None
    advice: Sequence[str] = ()
    examples: Sequence[tuple[str, Sequence[Example]]] = ()
    missed: Sequence[Example] = ()
    no_examples: str = ""
    legend: Sequence[tuple[str, str]] = ()
    network: Sequence[str] = ()
    lines: Sequence[str] = ()
    means: Sequence[tuple[str, str]] = ()
    class_differences: Sequence[tuple[str, Sequence[tuple[str, str]]]] = ()
    differing: Sequence[tuple[str, Sequence[str]]] = ()


def write_report(
    runs: Path | str | Sequence[Path | str],
    out: Path | str | None = None,
    *,
    device: str | None = None,
    predictor: Predictor | None = None,
) -> Path:
    """Write the report of a run, or the comparison of several; for arguments see `ubend.report`.

    Args:
        predictor: the model, if there is only one run; None: it is loaded.
    """
    paths = [Path(runs)] if isinstance(runs, str | Path) else [Path(run) for run in runs]
    if not paths:
        raise SettingError(_("no run to report on; name at least one run folder"), key="runs")
    if out is None:
        target = RunFolder(paths[0]).report
        target = target if len(paths) == 1 else target.with_name("comparison.html")
    else:
        target = Path(out)
        refuse_existing([target])
    if len(paths) == 1:
        page = _describe_run(paths[0], lambda: predictor or load(paths[0], device))
    else:
        page = _describe_comparison(paths, device)
    if page.no_examples and page.comparison is None and out is None and target.exists():
        line = _("{path} is kept, since a new report would have no images; put them back, or write another with --out")
        raise OutputError(" ".join([line.format(path=target), f"({page.no_examples})"]), path=target)
    write_text(target, render_page(Path(__file__).with_name("report.html"), page=page, draw_figures=_draw_figures))
    return target


def _describe_run(path: Path, open_model: Callable[[], Predictor]) -> Page:
    facts = read_facts(path)
    page = Page(_("Report of {run}").format(run=facts.name), [facts], advice=advise(facts))
    headings = {"worst": _("The worst images"), "typical": _("Typical images"), "best": _("The best images")}
    chosen = {headings[kind]: names for kind, names in choose_examples(facts.image_dice).items() if names}
    examples_of = dict[str, list[Figure]]()
    missed = facts.missed.largest if facts.missed else ()
    thumbnails = dict[LargestMissed, Example]()
    try:
        predictor = open_model()
        for model, scored in _scored_by(path, facts, predictor):
            names = [name for names_of_kind in chosen.values() for name in names_of_kind if name in scored]
            examples_of |= _draw_examples(facts, {"": model}, names)
            thumbnails |= _draw_missed(
                facts, model, [missed_object for missed_object in missed if missed_object.image in scored]
            )
    except (UbendError, KeyError) as error:
        return replace(page, no_examples=_explain_no_examples(error))
    captions = {name: f"{name}: " + _("Dice {dice:.3f}").format(dice=facts.image_dice[name]) for name in examples_of}
    examples = [
        (heading, [Example(captions[name], examples_of[name]) for name in names]) for heading, names in chosen.items()
    ]
    return replace(
        page,
        examples=examples,
        missed=[thumbnails[missed_object] for missed_object in missed if missed_object in thumbnails],
        legend=_legend(predictor.labels),
        network=predictor.bundle.model.describe(),
    )


def _scored_by(path: Path, facts: RunFacts, predictor: Predictor) -> Iterator[tuple[Predictor, Mapping[str, Any]]]:
    """The models of a run, each with the images that were scored with it: without a test split, those of its fold."""
    if facts.scores.subset != "out-of-fold":
        yield predictor, facts.image_dice
        return
    for fold in sorted(path.glob("fold-*")):
        yield load(fold, str(predictor.device)), read_scores(fold).data["per_picture"]


def _describe_comparison(paths: Sequence[Path], device: str | None) -> Page:
    read = [read_facts(path) for path in paths]
    short = [run_facts.name for run_facts in read]
    facts = dict(zip(short if len({*short}) == len(short) else map(str, paths), read, strict=True))
    comparison = compare_scores({name: run_facts.scores for name, run_facts in facts.items()}, MARGIN)
    title = _("Comparison of {runs}").format(runs=", ".join(run_facts.name for run_facts in facts.values()))
    page = Page(
        title,
        [*facts.values()],
        comparison,
        lines=[
            *(verdict_line(pair, comparison.margin) for pair in comparison.pairs),
            *note_lines(comparison),
            _("A training with another seed would give different scores; the intervals do not include this variation."),
        ],
        means=[(name, show_interval(interval)) for name, interval in comparison.scores.items()],
        class_differences=[
            (
                _("{a} compared with {b}").format(a=pair.a, b=pair.b),
                [(name, show_interval(interval, sign="+")) for name, interval in pair.classes.items()],
            )
            for pair in comparison.pairs
        ],
        differing=different_settings([*facts.values()]),
    )
    if any(run_facts.scores.subset == "out-of-fold" for run_facts in read):
        cause = _("the scores are out-of-fold, from the models of several folds")
        return replace(page, no_examples=_explain_no_examples(cause))
    try:
        predictors = {name: load(path, device) for name, path in zip(facts, paths, strict=True)}
        examples = []
        for pair in comparison.pairs:
            caption = _("{name}: Dice {a:.3f} ({run_a}) and {b:.3f} ({run_b})")
            for better, images in ((pair.a, pair.better_by_a), (pair.b, pair.better_by_b)):
                changed = {image.name: image for image in images[:_CHANGED]}
                drawn = _draw_examples(read[0], {name: predictors[name] for name in (pair.a, pair.b)}, changed)
                panels = [
                    Example(caption.format(run_a=pair.a, run_b=pair.b, **vars(changed[name])), figures)
                    for name, figures in drawn
                ]
                if panels:
                    heading = _("{a} and {b}: images on which {better} is better")
                    examples.append((heading.format(a=pair.a, b=pair.b, better=better), panels))
    except (UbendError, KeyError) as error:
        return replace(page, no_examples=_explain_no_examples(error))
    return replace(page, examples=examples, legend=_legend(next(iter(predictors.values())).labels))


def _explain_no_examples(error: object) -> str:
    return _("Images with their predictions cannot be shown: {reason}").format(reason=error)


def _draw_examples(
    facts: RunFacts, models: Mapping[str, Predictor], names: Iterable[str]
) -> Iterator[tuple[str, list[Figure]]]:
    """(name, figures) of these images: the image, the truth, and the prediction and errors of each model."""
    pairs = [facts.pairs[name] for name in names]
    first = next(iter(models.values()))
    labels, channels = first.labels, first.bundle.sizing.channels
    background = background_class(labels.names)
    predictions = {name: _predict(model, pairs, labels) for name, model in models.items()}
    for index, pair in enumerate(pairs):
        image, truth = read_small(pair, labels, channels)
        overlay = functools.partial(overlay_mask, image, colors=labels.colors, background=background)
        alt = _("{name}, the truth: {shares}").format(name=pair.name, shares=_shares(truth, labels))
        figures = [
            Figure(_("image"), _("{name}, the image").format(name=pair.name), image_uri(image)),
            Figure(_("truth"), alt, image_uri(overlay(mask=truth))),
        ]
        for model, masks_of_model in predictions.items():
            mask = resize_mask(masks_of_model[index], truth.shape)
            alt = _("{name}, the prediction: {shares}").format(name=pair.name, shares=_shares(mask, labels))
            figures.append(Figure(" ".join([_("prediction"), model]), alt, image_uri(overlay(mask=mask))))
            share = float((mask != truth)[truth != IGNORED].mean())
            alt = _("{name}, the errors: {share:.0%} of the pixels are wrong").format(name=pair.name, share=share)
            errors = draw_error_map(image, truth, mask, labels, masks_of_model[index].shape)
            figures.append(Figure(" ".join([_("errors"), model]), alt, image_uri(errors)))
        yield pair.name, figures


def _draw_missed(
    facts: RunFacts, model: Predictor, missed: Sequence[LargestMissed]
) -> Iterator[tuple[LargestMissed, Example]]:
    """(object, thumbnails) of missed objects in images that this model is scored on."""
    pairs = [facts.pairs[name] for name in dict.fromkeys(largest.image for largest in missed)]
    labels, channels = model.labels, model.bundle.sizing.channels
    for index, prediction in _predict(model, pairs, labels).items():
        pair = pairs[index]
        in_image = [missed_object for missed_object in missed if missed_object.image == pair.name]
        yield from draw_missed(pair, prediction, in_image, labels, channels).items()


def _shares(mask: NDArray[np.uint8], labels: LabelMap) -> str:
    """The share of each class except the background in a mask, as text."""
    background = background_class(labels.names)
    shares = ((name, (mask == n).mean()) for n, name in enumerate(labels.names) if n != background)
    return ", ".join(f"{name} {share:.0%}" for name, share in shares)


def _predict(predictor: Predictor, pairs: Sequence[Pair], labels: LabelMap) -> dict[int, NDArray[np.uint8]]:
    """Index of a pair -> (H, W) predicted class index, in the order of `labels`."""
    table = np.full(256, IGNORED, np.uint8)
    table[: labels.classes] = [labels.names.index(name) for name in predictor.labels.names]
    images = (load_image(pair.image, predictor.bundle.sizing.channels) for pair in pairs)
    return {index: table[prediction.mask] for index, prediction in predictor.predict(images)}


def _legend(labels: LabelMap) -> list[tuple[str, str]]:
    background = background_class(labels.names)
    classes = [
        name_and_color
        for n, name_and_color in enumerate(zip(labels.names, labels.colors, strict=True))
        if n != background
    ]
    return [(name, _hex(color)) for name, color in [*classes, *error_legend(labels)]]


def _hex(color: Color) -> str:
    return "#" + "".join(f"{part:02x}" for part in color)


def _draw_figures(facts: RunFacts) -> tuple[list[Figure], Figure | None]:
    """The curves, and the calibration plot."""
    curves = []
    if facts.history:
        last = facts.history[-1]
        alt = _("curve of {title} over {epochs} epochs; the last values are in metrics.jsonl")
        for title, svg in draw_curve_svgs(facts.history, facts.labels.names).items():
            curves.append(Figure(title, alt.format(title=title, epochs=last["epoch"]), svg_uri(svg)))
    if facts.calibration is None or facts.expected_error is None:
        return curves, None
    alt = _("calibration plot: share of correct pixels over the probability; expected calibration error {error:.3f}")
    uri = svg_uri(draw_calibration(facts.calibration))
    return curves, Figure(_("calibration"), alt.format(error=facts.expected_error), uri)
