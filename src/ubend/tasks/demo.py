"""The demo: draw a sample, train, score and predict, in about a minute."""

from pathlib import Path

from ubend.core.files import model_path, refuse_existing_results
from ubend.core.i18n import _
from ubend.core.progress import Reporter
from ubend.core.settings import NO_ENCODER
from ubend.dataset.sample import draw_sample
from ubend.evaluation.score_tables import score_lines
from ubend.tasks.fit import fit
from ubend.tasks.predict import predict_paths
from ubend.tasks.show import draw_predictions, draw_samples
from ubend.tasks.user_settings import read_user_settings
from ubend.training.run_folder import RunFolder, free_run_name

# The sample's cells are small and look alike everywhere, so crops at full resolution teach more than reduced whole
# images. There are few images, so batches are small, which gives more steps. On drawn cells with so few steps the plain
# U-Net is better than a pretrained encoder (docs/experiments.md).
_SETTINGS = {
    "data.size": 256,
    "data.crop": 128,
    "model.encoder": NO_ENCODER,
    "train.batch": 4,
    "train.epochs": 16,
    "train.warmup": 0.1,
}


def run_demo(out: Path | str | None, *, reporter: Reporter, seed: int = 0) -> Path:
    """Draw the sample, train, score, predict, and report the files.

    Args:
        out: the folder to create; None: `ubend-demo-1`, `-2`, ... in the working folder.
    Raises:
        OutputError: `out` exists already.
    """
    out = refuse_existing_results(free_run_name(Path("ubend-demo"), Path()) if out is None else out)
    sample, run, masks = out / "sample", out / "run", out / "predictions"
    reporter.report(_("drawing microscope images into {path}").format(path=sample))
    draw_sample(sample, seed=seed)
    grid = draw_samples(read_user_settings(sample).settings, out / "samples.png", count=4)
    result = fit(sample, run, settings=_SETTINGS, seed=seed, reporter=reporter)
    if result.scores is None:
        return out
    for line in score_lines(result.scores.data):
        reporter.report(line)
    panel = draw_predictions(run)
    images = sorted((sample / "images").iterdir())[:4]
    predict_paths(run, images, masks, reporter=reporter)
    reporter.report("")
    reporter.report(_("Results:"))
    for path, what in (
        (grid, _("the images and their masks")),
        (panel, _("test images: input, truth, prediction")),
        (RunFolder(run).report, _("the report: scores, curves, images, settings")),
        (run / "curves.png", _("loss and Dice of each epoch")),
        (run / "panels", _("the same images after every epoch")),
        (masks, _("masks and overlays as files")),
        (model_path(run), _("the model, for `ubend predict`")),
    ):
        reporter.report(f"  {path}  {what}")
    return out
