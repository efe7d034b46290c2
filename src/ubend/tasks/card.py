"""The model card of a run: README.md for a model repository, such as one of the Hugging Face Hub.

Format: https://huggingface.co/docs/hub/model-cards: YAML between two lines `---`, then Markdown. What only the author
knows, such as the intended use and the licence, is marked as to be filled in.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from ubend.core.errors import SettingError
from ubend.core.files import model_path, refuse_existing, write_text
from ubend.core.i18n import _, ngettext
from ubend.evaluation.score_tables import main_row, row_name
from ubend.labels.class_table import background_class
from ubend.models.model_file import Bundle, load_bundle
from ubend.tasks.report_facts import RunFacts, read_facts

CARD = "README.md"
_TASK = "image-segmentation"  # the Hub's word
_FEW_TEST_IMAGES = 50  # with fewer, intervals are rough (`ubend.evaluation.intervals`)


def write_card(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the model card of a run; returns its path.

    Args:
        runs: the run folder; only one.
        out: the file; None: README.md in the run folder. It must not exist, so that no author's text is lost.
    Raises:
        SettingError: several runs.
        OutputError: the run has no scores, or is damaged; the file exists already, or cannot be written.
        ModelFileError: the model is missing or damaged.
    """
    if len(runs) != 1:
        line = _("--card describes one model, but {count} runs are named; name one of them")
        raise SettingError(line.format(count=len(runs)), key="--card")
    run = runs[0]
    target = run / CARD if out is None else out
    refuse_existing([target])
    facts, bundle = read_facts(run), load_bundle(run)
    front = yaml.safe_dump(describe_model_index(facts), sort_keys=False, allow_unicode=True, width=1000)
    write_text(target, f"---\n{front}---\n\n" + "\n".join(_body(facts, bundle, run)) + "\n")
    return target


def describe_model_index(facts: RunFacts) -> dict[str, Any]:
    """The YAML part of the card; scores are those of scores.json, means over images at native size."""
    native = facts.scores.data["native"]
    row = main_row([*native["predicted_share"]])
    metrics = [
        {"type": measure, "value": native[measure]["per_image"][row], "name": f"{title} ({row_name(row)})"}
        for measure, title in (("dice", "Dice"), ("iou", "IoU"))
        if native[measure]["per_image"][row] is not None
    ]
    dataset = {"type": facts.summary.data, "name": facts.summary.data, "split": facts.scores.subset}
    result = {"task": {"type": _TASK, "name": "Image Segmentation"}, "dataset": dataset, "metrics": metrics}
    return {
        "license": "unknown",
        "library_name": "ubend",
        "pipeline_tag": _TASK,
        "tags": [_TASK, "semantic-segmentation", "u-net", "ubend"],
        "metrics": ["dice", "iou"],
        **({"model-index": [{"name": facts.name, "results": [result]}]} if metrics else {}),
    }


def _body(facts: RunFacts, bundle: Bundle, run: Path) -> Iterator[str]:
    """The Markdown part, line by line."""
    yield f"# {_plain(facts.name)}"
    yield ""
    yield _plain(" ".join(facts.sentences[:3]))
    sections = {
        _("Model"): _model(facts, bundle),
        _("Intended use"): _intended_use(),
        _("Training data"): _training_data(facts, bundle),
        _("Scores"): _scores(facts),
        _("Limitations"): (f"- {_plain(line)}" for line in _limitations(facts)),
        _("How to use it"): _usage(run),
        _("Licence"): _licence(bundle),
        _("Train it again"): _reproduction(facts),
    }
    for title, lines in sections.items():
        yield from ("", f"## {title}", "", *lines)


def _model(facts: RunFacts, bundle: Bundle) -> Iterator[str]:
    yield from (f"- {_plain(line)}" for line in bundle.model.describe())
    yield "- " + _("channels of the images: {count}").format(count=bundle.sizing.channels)
    yield ""
    names, native = facts.labels.names, facts.scores.data["native"]
    rows = [(str(index), name, f"{native['true_share'][name]:.1%}") for index, name in enumerate(names)]
    yield from _table((_("class index"), _("class"), _("share of the scored pixels")), rows)


def _intended_use() -> Iterator[str]:
    yield _to_fill_in() + _("for which images and which purpose the model is meant.")
    yield _to_fill_in() + _("for which images and purposes it must not be used.")


def _training_data(facts: RunFacts, bundle: Bundle) -> Iterator[str]:
    summary = facts.summary
    size = _("at native size") if summary.size_px is None else _("at {size} px").format(size=summary.size_px)
    yield _plain(_("Images and masks of {data}, used {size}.").format(data=summary.data, size=size))
    yield ""
    rows = [(row.name, str(row.images), str(row.groups or "-")) for row in facts.splits]
    yield from _table((_("split"), _("images"), _("groups")), rows)
    yield ""
    yield _to_fill_in() + _("where the images come from, who drew the masks, their licence.")
    if bundle.about.get("encoder_weights"):
        line = _("The encoder started from pretrained weights: {weights}.")
        yield "- " + _plain(line.format(weights=bundle.about["encoder_weights"]))


def _scores(facts: RunFacts) -> Iterator[str]:
    line = _("{row}, at the images' own size; the 95% intervals are over {over}").format(row=facts.row, over=facts.over)
    yield _plain(line)
    yield ""
    heads: tuple[str, ...] = (_("measure"), _("mean (95% interval)"), _("median"), _("worst tenth"), _("pooled"))
    yield from _table(heads, [(row.name, row.mean, row.median, row.worst, row.pooled) for row in facts.measures])
    yield ""
    heads = (_("class"), _("Dice (95% interval)"), _("IoU"), _("precision"), _("recall"))
    yield from _table(heads, [(row.name, row.dice, row.iou, row.precision, row.recall) for row in facts.classes])
    if facts.groups:
        yield ""
        heads = (_("group"), _("images"), _("Dice (95% interval)"), _("IoU (95% interval)"))
        yield from _table(heads, [(row.name, str(row.images), row.dice, row.iou) for row in facts.groups])
    if facts.seed_lines:
        yield ""
        yield from (f"- {_plain(line.strip())}" for line in facts.seed_lines)


def _limitations(facts: RunFacts) -> Iterator[str]:
    """What the run itself shows: how the split was made, leaks, few images, intervals, calibration, weak classes."""
    count = facts.scores.data["native"]["pictures"]
    if count < _FEW_TEST_IMAGES:
        line = ngettext(
            "Only {count} image was scored, so the scores are a rough estimate for other images.",
            "Only {count} images were scored, so the scores are a rough estimate for other images.",
            count,
        )
        yield line.format(count=count)
    if facts.scores.subset == "val":
        yield _(
            "There is no test split: the scores are those of the images by which the weights were chosen, too high."
        )
    if facts.rough:
        yield _(
            "The intervals are rough: there are under 50 images or 20 groups, or nearly all of them score the same."
        )
    yield from facts.split_lines
    bad = sum(value < 0.5 for value in facts.image_dice.values())
    yield _("In {bad} of {count} scored images the Dice is below 0.5.").format(bad=bad, count=len(facts.image_dice))
    yield facts.sentences[-1]
    background = background_class(facts.labels.names)
    missing = [
        row.name
        for index, row in enumerate(facts.classes)
        if index != background and (row.images == 0 or row.dice == "-")
    ]
    if missing:
        yield _("Classes without a score, since no scored image has them: {names}").format(names=", ".join(missing))


def _usage(run: Path) -> Iterator[str]:
    file = model_path(run).name
    yield _("With the file {file} of this folder, and ubend installed:").format(file=f"`{file}`")
    yield from ("", "```bash", f"ubend predict {file} images --out masks", "```", "", "```python", "import ubend", "")
    yield from (f'predictor = ubend.load("{file}")', 'prediction = predictor("image.png")')
    yield "prediction.mask  # (H, W) uint8 class index"
    yield "```"


def _licence(bundle: Bundle) -> Iterator[str]:
    yield _to_fill_in() + _("the licence of this model, here and as `license` above.")
    if bundle.about.get("encoder_weights"):
        line = _("Pretrained weights of the encoder, and their licence: {weights}")
        yield "- " + _plain(line.format(weights=bundle.about["encoder_weights"]))
    yield "- " + _("ubend, which made it: Apache-2.0")


def _reproduction(facts: RunFacts) -> Iterator[str]:
    yield from ("```bash", "ubend fit FOLDER --config settings.toml --out again", "```", "")
    yield _("FOLDER holds the images and masks; settings.toml is that of the run folder.")
    yield ""
    yield from (f"- {name}: {_plain(version)}" for name, version in facts.versions)


def _to_fill_in() -> str:
    """The beginning of a line for what only the author knows."""
    return "- " + _("To be filled in by the author:") + " "


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table."""
    for cells in (heads, ["---"] * len(heads), *rows):
        yield "| " + " | ".join(_plain(cell) for cell in cells) + " |"


def _plain(text: str) -> str:
    """Text in one line, whose characters mean nothing in Markdown or HTML."""
    text = " ".join(text.split())
    for character in "\\`|<>[]*_":
        text = text.replace(character, "\\" + character)
    return text
