"""The functions of `import ubend`: one for each subcommand, with the command's flags as keywords.

A keyword has the flag's name (`--min-area` is `min_area`), except these:

| flag | keyword |
|---|---|
| `--with MODEL` | `model=[first, second]` |
| `--class NAME` | `classes=` |
| `--from MODEL` | `init_from=` |
| `--set KEY=VALUE` | `settings={KEY: VALUE}` |

A flag that can be repeated takes a list; a flag of the form `CLASS=NUMBER` takes a dict. Each function reports what
its command prints, in the same words, through `reporter`. Notes and warnings go there too, in order, because they are
part of the log of a long training. Python's `warnings` would show each once per process, with a line number of ubend,
and under `-W error` end a training at its last step. Two calls have no reporter: `ubend.read_folder` returns its notes
as `notes`, and a call of a predictor, such as `predictor(image)`, gives a UserWarning through `warnings` if the image
is changed to fit: grey repeated, colour made grey, alpha taken as the valid pixels.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

    from ubend.core.progress import Reporter
    from ubend.core.settings import Effort, LossKind, Recipe, TrackerName
    from ubend.dataset.arrays import Arrays
    from ubend.evaluation.comparison import Comparison
    from ubend.evaluation.score_tables import Scores
    from ubend.exporting.targets import Precision, Target
    from ubend.layouts.pairs import SplitName
    from ubend.portable.mask_predictor import PredictionOptions
    from ubend.portable.object_files import Export
    from ubend.portable.objects import Method
    from ubend.portable.probabilities import ProbKind
    from ubend.tasks.fit_result import FitResult
    from ubend.tasks.reading import DataFolder
    from ubend.training.custom_parts import LossFunction


def fit(
    folder: Path | str | None = None,
    *,
    out: Path | str | None = None,
    images: "Path | str | Arrays | None" = None,
    masks: "Path | str | Arrays | None" = None,
    split: Path | str | Sequence[str] | None = None,
    groups: Sequence[str | int | None] | None = None,
    classes: str | Sequence[str] | None = None,
    values: str | Sequence[str] | None = None,
    channels: int | None = None,
    skip_bad: bool | None = None,
    root: Path | str | None = None,
    recipe: "Recipe | None" = None,
    size: int | None = None,
    patches: bool | None = None,
    width: int | None = None,
    encoder: str | None = None,
    network: "nn.Module | None" = None,
    loss: "LossKind | LossFunction | None" = None,
    effort: "Effort | None" = None,
    folds: int | None = None,
    leave_out: Literal["group"] | None = None,
    seeds: int | None = None,
    test: Literal["none"] | None = None,
    epochs: int | None = None,
    batch: int | None = None,
    patience: int | None = None,
    skips: str | Sequence[bool] | None = None,
    seed: int | None = None,
    device: str | None = None,
    gpus: int | None = None,
    deterministic: bool | None = None,
    track: "TrackerName | None" = None,
    config: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    init_from: Path | str | None = None,
    show: bool = False,
    watch: bool = False,
    reporter: "Reporter | None" = None,
) -> "FitResult":
    """Train a U-Net on a folder of images and masks, score it, and write model, scores and logs to a run folder.

    A keyword that is None is chosen from the images and the device; the main choices are reported with their reasons.
    Keywords override `config`, and `settings` overrides keywords. Ctrl-C stops after the current step and keeps the
    model; `ubend.resume` continues. Under torchrun all processes train together; only the first one reports and writes.

    Args:
        folder: images and masks in any of the layouts of docs/formats.md, or the name of a data set (oxford-pet,
            kvasir-seg), or a `data.toml` of `ubend.data`; None: with `images` and `masks`.
        out: the run folder, new or empty; None: `runs/NAME-1`, `-2`, ...
        images: folder or glob of the images, in place of `folder`. Or N arrays (H, W) or (H, W, C), or one array
            (N, H, W[, C]): uint8, uint16 or float (converted to float32, any unit, NaN is invalid); they are written
            to the cache once, as files named 0000, 0001, ...
        masks: folder or glob of the masks, with `images`. Or N arrays (H, W), or one array (N, H, W), of integers
            0..65535 or bool.
        split: CSV `file,split[,group]` or `file,group`: the split of each image (train, val, test); None: the
            splits that the folder states, else random ones: 15% validation, 15% test, groups kept together. With
            arrays also a list of N words.
        groups: with arrays: the patient, video or site of each image; images of one group stay in one split.
        classes: class names in the order of the mask values, as a list or separated by commas; None: read from the
            folder, else numbered.
        values: meaning of the mask values, `value=name` each, as a list or separated by commas, such as
            `["0=background", "255=polyp"]` or `"#ff0000=road"`; None: found in the masks.
        channels: number of channels to read, 1..16; 1 is grey, 3 is colour; None: as stored.
        skip_bad: leave out pairs that cannot be used, and name them; None: False.
        root: folder where a named data set is, or is downloaded to; None: the cache.
        recipe: group of settings to start from: `modern`, `tutorial` (the course text's settings, with its faults
            fixed) or `paper` (the original U-Net and its training); None: `modern`, unless `config` names another.
        size: px, 8..8192; images are resized to the area of a square of this side.
        patches: train on crops at native scale; `size` is then the side of a crop, px, 16..8192.
        width: channels of the network's first level, 1..1024; each deeper level has twice as many.
        encoder: name of an encoder with ImageNet weights, such as tf_efficientnet_lite2 or resnet18; `none`: the
            U-Net's own; None: tf_efficientnet_lite0; `none` if width, depth or skips is given.
        network: your own module: (N, C, H, W) float32 normalised images -> (N, K, H, W) logits of K classes. If it has
            the attribute `input_multiple`, H and W are padded to multiples of it; otherwise it must accept any size.
            It is copied, and its weights are the initial ones. `ubend.load`, `ubend.evaluate` and `ubend.resume`
            need it too; commands, `predict` and `export` cannot use it: `ubend.load(run, network=...)(image)` does.
        loss: `ce`: cross entropy; `ce-sum`: its sum over the pixels; `dice+ce`: cross entropy + 1 - soft Dice;
            `logdice+ce`: cross entropy - log(soft Dice); `dice+focal`: dice+ce where pixels that are already right
            count little; None: `logdice+ce`. Or your own function (logits (N, K, H, W) float32, target (N, H, W) int64
            class index or 255 = not scored, weights (N, H, W) float32, 0 where not scored) -> scalar; its values for
            micro-batches and processes are averaged, weighted by their numbers of images.
        effort: `quick`: a quarter of the epochs; `best`: 5 folds, predictions averaged over mirrored images, and class
            weights in prediction where they help; changes only what is None elsewhere; None: `normal`.
        folds: number of models, 2..100; each is trained without one fold of the images, and they are packed into one
            model file; see docs/folds.md.
        leave_out: `group`: cross-validation whose folds are the groups; each image is scored by the model that was
            trained without its group.
        seeds: number of trainings on the same split, 1..100, with the seeds `seed`, `seed` + 1, ...; the model is the
            one with the best validation score.
        test: `none`: no test split, so that every image is in one fold; only with `folds`.
        epochs: number of epochs, 1 or more.
        batch: images per step, 1 or more, of all processes together.
        patience: stop after this many epochs without a better validation score; None: never.
        skips: skip connections to keep: `all`, `none`, levels such as `1,2` (1 is full size), or a bool for each
            level; None: all.
        seed: random seed, 0..2^63 - 1; None: 0.
        device: cuda, cuda:1, mps or cpu; None: the fastest available.
        gpus: with `folds`, `leave_out` or `seeds`, the number of models that are trained at once, each on its own GPU;
            otherwise it must equal the number of processes, which `ubend fit --gpus N` or torchrun starts.
        deterministic: bit-identical results on a GPU; slower; None: False.
        track: `tensorboard`, `mlflow` or `trackio`: also send settings, metrics and scores to this experiment tracker;
            see docs/training.md; None: to none.
        config: TOML file of settings, such as a run's settings.toml.
        settings: dotted key -> value of any setting of docs/settings.md, such as {"train.epochs": 5}.
        init_from: run folder or model file with the initial weights.
        show: also display each epoch's panel, in a notebook or a window.
        watch: show curves and panels on a page at 127.0.0.1 while training; its address is reported.
        reporter: reports notes, choices and epochs; None: prints them, as the command does.
    Returns:
        The run folder, and the scores on the test split.
    Raises:
        SettingError: an unknown setting, a value out of range, or settings that contradict each other.
        PairError, DataError: the folder cannot be used; lists all of its problems.
        ModelFileError: `init_from` cannot be used.
        OutputError: `out` is not empty, or cannot be written.
        TrainingError: the loss is no longer finite.
    """
    from ubend.tasks.several import fit as run_fit

    result = run_fit(
        folder,
        out,
        recipe=recipe,
        config=config,
        settings=settings,
        show=show,
        watch=watch,
        reporter=reporter,
        images=images,
        masks=masks,
        split=split,
        groups=groups,
        classes=classes,
        values=values,
        channels=channels,
        skip_bad=skip_bad,
        root=root,
        size=size,
        patches=patches,
        width=width,
        encoder=encoder,
        network=network,
        loss=loss,
        effort=effort,
        folds=folds,
        leave_out=leave_out,
        seeds=seeds,
        test=test,
        epochs=epochs,
        batch=batch,
        patience=patience,
        skips=skips,
        seed=seed,
        device=device,
        gpus=gpus,
        deterministic=deterministic,
        track=track,
        init_from=init_from,
    )
    _report_one_class(result.scores, reporter)
    return result


def resume(
    run: Path | str,
    *,
    network: "nn.Module | None" = None,
    loss: "LossFunction | None" = None,
    gpus: int | None = None,
    show: bool = False,
    watch: bool = False,
    reporter: "Reporter | None" = None,
) -> "FitResult":
    """Resume an interrupted training, as if it had not been interrupted; a finished one is scored again.

    Args:
        run: the run folder.
        network: your own module, if the run was started with one; its weights do not matter.
        loss: your own loss function, if the run was started with one.
        gpus: see `fit`.
        show: also display each epoch's panel.
        watch: show curves and panels on a local page, see `ubend.fit`.
        reporter: reports notes and epochs; None: prints them, as the command does.
    Raises:
        OutputError: there is no run to resume, or it is from an older version.
        SettingError: `network` or `loss` is missing, or is not of the run.
        TrainingError: the images have changed since.
    """
    from ubend.tasks.several import resume as run_resume

    result = run_resume(run, network=network, loss=loss, gpus=gpus, show=show, watch=watch, reporter=reporter)
    _report_one_class(result.scores, reporter)
    return result


def evaluate(
    model: Path | str,
    *,
    folder: Path | str | None = None,
    images: "Path | str | Arrays | None" = None,
    masks: "Path | str | Arrays | None" = None,
    split: Path | str | None = None,
    values: str | Sequence[str] | None = None,
    skip_bad: bool = False,
    root: Path | str | None = None,
    subset: "SplitName | None" = None,
    settings: Mapping[str, Any] | None = None,
    network: "nn.Module | None" = None,
    device: str | None = None,
    tiles: int | None = None,
    tta: bool = False,
    out: Path | str | None = None,
    reporter: "Reporter | None" = None,
) -> "Scores":
    """Score a model on the test split of its own run, or on any folder of images and masks.

    Images that the model was trained on are recognised by their pixels and left out, unless `subset` is train. If all
    images of the folder are the model's own (the data of its run, moved), they keep their splits. Classes that the
    masks of `folder` cannot contain have no score.

    Args:
        model: a run folder or a model file.
        folder: images with masks, or a data set by name; None: those of the run (then `model` is a run folder).
        images: folder or glob of the images, in place of `folder`; or arrays, see `ubend.fit`.
        masks: folder or glob of the masks, or arrays, with `images`.
        split: CSV `file,split[,group]` or `file,group`: the split of each image.
        values: meaning of the mask values in `folder`, `value=name` each, with the model's class names; None: matched
            by the class names that the folder states, else as in the model's own masks.
        skip_bad: leave out pairs that cannot be used; the scores list them as `skipped`.
        root: folder where a named data set is, or is downloaded to; None: the cache.
        subset: images to score: train, val or test; None: the test split if there is one, else validation, else all.
        settings: {"data.unmasked": "background"}: images of `folder` without a mask file show background alone.
        network: your own module, if the model was trained with one; its weights do not matter.
        device: cuda, cuda:1, mps or cpu; None: the fastest available.
        tiles: side of the tiles in px, at native scale; 0: whole images; None: as the model was trained.
        tta: test-time augmentation: average over flips, and over rotations if the model was trained with them.
        out: JSON file for the scores; it must not exist.
        reporter: reports notes and warnings; None: prints them, as the command does.
    Raises:
        PairError: pairs that cannot be used; lists all of them.
        DataError: no images in the subset, or only training images.
        ModelFileError: the model cannot be read.
        OutputError: `out` exists, or `model` has no data list.
        SettingError: there is no such device or setting, or `tiles` is negative.
    """
    from ubend.core.files import refuse_existing, write_json
    from ubend.evaluation.score_tables import Scores
    from ubend.tasks.evaluate import evaluate as run_evaluate

    refuse_existing([] if out is None else [Path(out)])
    scores = Scores(
        run_evaluate(
            model,
            folder,
            subset=subset,
            settings=settings,
            device=device,
            tiles=tiles,
            tta=tta,
            network=network,
            reporter=reporter,
            images=images,
            masks=masks,
            split=split,
            values=values,
            skip_bad=skip_bad,
            root=root,
        )
    )
    _report_one_class(scores, reporter)
    if out is not None:
        write_json(Path(out), scores.to_dict())
    return scores


def compare(
    runs: "Sequence[Path | str | Scores]", *, margin: float = 0.01, json: Path | str | None = None
) -> "Comparison":
    """Compare models on the same test images: which is better, and which images changed most.

    Paired bootstrap of the difference of Dice, the mean over the classes without the background, at a level of 5%;
    of groups where the images are in groups; by Holm's method for more than two models. docs/scores.md says what a
    verdict means. `print` of the result gives the lines of the command.

    Args:
        runs: two or more: run folders, files of scores that `ubend.evaluate(out=...)` wrote, or `Scores`. They are
            named by what is given here, `Scores` by their number.
        margin: the largest difference of Dice that does not matter, above 0 and below 1.
        json: JSON file to write the comparison to as well; it must not exist yet.
    Raises:
        DataError: the test images, masks or classes are not the same.
        OutputError: a run has no scores, or `json` exists already.
        SettingError: fewer than two models, or `margin` is out of range.
    """
    from ubend.tasks.compare import compare as run_compare

    return run_compare(runs, margin=margin, out=json)


def report(
    runs: "Path | str | Sequence[Path | str]",
    *,
    out: Path | str | None = None,
    card: bool = False,
    device: str | None = None,
) -> Path:
    """Write the report of a run, or of several runs that are compared: one HTML file, to read without a network.

    Scores with intervals, curves, the best, typical and worst test images with their errors, how the split was made,
    settings with their reasons, and the command that trains the same again; in the language of `UBEND_LANG`.
    `ubend.fit` writes it too.

    Args:
        runs: a run folder; or several, which must have been scored on the same images.
        out: the file; None: `report.html` in the run folder, or `comparison.html` in the first of several; it is
            written again.
        card: write the model card of one run instead, `README.md` in the run folder: Markdown with the metadata of the
            Hugging Face Hub. It is not written again, so that what the author filled in stays.
        device: cuda, cuda:1, mps or cpu, to predict the images that are shown; None: the fastest here.
    Returns:
        The file.
    Raises:
        DataError: the test images, masks or classes of several runs are not the same.
        OutputError: a run has no scores, or is damaged; `out` exists already, or cannot be written.
        SettingError: no run is named, or several with `card`; or there is no such device.
        ModelFileError: the model of a card is missing or damaged.
    """
    if card:
        from ubend.tasks.card import write_card

        paths = [runs] if isinstance(runs, str | Path) else runs
        return write_card([Path(run) for run in paths], None if out is None else Path(out))
    from ubend.tasks.report import write_report

    return write_report(runs, out, device=device)


def predict(
    model: Path | str | Sequence[Path | str],
    *,
    paths: Path | str | Sequence[Path | str],
    out: Path | str,
    tiles: int | None = None,
    overlap: float = 0.25,
    tta: bool = False,
    threshold: Mapping[str, float] | None = None,
    min_area: float | Mapping[str, float] | None = None,
    fill_holes: "float | Literal['all'] | Mapping[str, float | Literal['all']] | None" = None,
    prob: "ProbKind | None" = None,
    resume: bool = False,
    window: str | None = None,
    device: str | None = None,
    cluster: str | None = None,
    gpu_share: float | None = None,
    reporter: "Reporter | None" = None,
) -> list[Path]:
    """Write masks of images, videos and scans to a folder, with overlays and a table of the class shares.

    For arrays, or one image at a time, use `ubend.load(model)(image)`. docs/predictions.md describes the files.

    Args:
        model: a run folder or a model file; or several of the same classes, whose probabilities are averaged.
        paths: files, folders or globs of images; videos; scans (NIfTI files, folders of DICOM). With `cluster` also
            URLs, such as `s3://bucket/images`.
        out: folder for masks, overlays and shares.csv, with `cluster` also a URL; existing files are not overwritten.
        tiles: side of the tiles in px, at native scale; 0: whole images; None: as the model was trained.
        overlap: overlap between neighbouring tiles, as a fraction of the tile's side, 0 <= overlap < 1.
        tta: test-time augmentation: average over flips, and over rotations if the model was trained with them.
        threshold: class name -> probability from which on a pixel belongs to the class, 0 < p <= 1.
        min_area: remove smaller regions, px: one number for all classes but the background, or class name -> px.
        fill_holes: fill holes up to this area, px, or `all`: for all classes but the background, or class name -> px.
        prob: also write probabilities, for images: `uint8` or `uint16` TIFF, or `npz`.
        resume: keep existing outputs, and write the missing ones.
        window: intensity window of scans: `lung`, ..., or `CENTER,WIDTH` in the scan's units.
        device: cuda, cuda:1, mps or cpu; None: the fastest available.
        cluster: address of a Ray cluster that predicts the images, or `auto`: the one on this machine, started if there
            is none; docs/cluster.md. None: this process predicts them.
        gpu_share: part of a GPU that each process of the cluster takes, 0 < gpu_share <= 1, so that several share one;
            None: 1.
        reporter: reports notes and progress; None: prints them, as the command does.
    Returns:
        The mask files, including existing ones.
    Raises:
        SettingError: a keyword does not fit the model or the paths, or the cluster cannot be reached.
        MissingPackageError: the extra `cluster` is not installed.
        FilesError: some inputs failed; the others have their files.
        DataError: nothing to predict, or no input can be used.
        ModelFileError: a model cannot be read, or the models do not fit together.
        OutputError: an output exists already, or cannot be written.
    """
    from ubend.tasks.cluster import choose_task

    first, options = _prediction_options(model, tiles, overlap, tta, threshold, min_area, fill_holes)
    with _reporter(reporter) as log:
        return choose_task(cluster, gpu_share)(
            first,
            _as_list(paths),
            out,
            device=device,
            window=window,
            options=options,
            prob=prob,
            resume=resume,
            reporter=log,
        )


def export(
    model: Path | str,
    *,
    to: "Target" = "onnx",
    out: Path | str | None = None,
    precision: "Precision" = "fp32",
    single_file: bool = False,
    ort_web: Path | str | None = None,
    network: "nn.Module | None" = None,
    reporter: "Reporter | None" = None,
) -> Path:
    """Write a model as one file for other programs, or as a web page that predicts in the browser.

    It is compared with the model on images before; docs/deploy.md describes the file, the page, and the limits beyond
    which a more exact precision is taken, or nothing written. Needs the extra `export`, and for OpenVINO `openvino`.

    Args:
        model: a run folder or a model file.
        to: `onnx`: a file for onnxruntime and others; `openvino`: a file for OpenVINO; `web`: a page.
        out: the file, new, or the folder of the page, new or empty; None: beside the model file `model.onnx`, `web`, or
            for a single file `model.html`.
        precision: `fp32`; of `onnx` and `web` also `fp16`, which halves the file and is computed in float32; of
            `openvino` also `bf16`; of `onnx` and `openvino` also `int8`, which is calibrated on training images.
        single_file: write the page as one HTML file of at most 30 MB, which opens from the disk.
        ort_web: folder in which `npm pack onnxruntime-web` was run; None: it is downloaded once from npm's registry.
        network: your own module, if the model is one of it; its weights do not matter.
        reporter: reports notes and progress; None: prints them, as the command does.
    Returns:
        The file or folder.
    Raises:
        SettingError: the network cannot be exported, the target has no such precision, or there are no training images
            to calibrate `int8` on.
        MissingPackageError: the extra `export` or `openvino` is not installed.
        ModelFileError: the model cannot be read, or the export differs from it too much.
        OutputError: the file exists already, cannot be written, or would be too large for a single file.
        DataError: onnxruntime-web cannot be downloaded, or is not in its folder.
    """
    from ubend.tasks.export import export as run_export

    with _reporter(reporter) as log:
        return run_export(
            model,
            to=to,
            out=out,
            precision=precision,
            single_file=single_file,
            ort_web=ort_web,
            network=network,
            reporter=log,
        )


def objects(
    model: Path | str | Sequence[Path | str],
    *,
    paths: Path | str | Sequence[Path | str],
    out: Path | str,
    method: "Method | None" = None,
    min_area: int = 1,
    export: "Export | Sequence[Export]" = (),
    pixel_size: str | None = None,
    truth: Path | str | None = None,
    tiles: int | None = None,
    overlap: float = 0.25,
    tta: bool = False,
    threshold: Mapping[str, float] | None = None,
    fill_holes: "float | Literal['all'] | Mapping[str, float | Literal['all']] | None" = None,
    device: str | None = None,
    reporter: "Reporter | None" = None,
) -> list[Path]:
    """Number, measure and outline the objects in images: `objects.csv`, `images.csv`, `NAME_ids.tif`, overlays.

    docs/objects.md describes the files and columns. Needs the extra `objects`.

    Args:
        model: a run folder or a model file; or several of the same classes, whose probabilities are averaged.
        paths: files, folders or globs of images.
        out: folder for ids, outlines and tables; existing files are not overwritten.
        method: how touching objects are separated: `contour`: by the class of that name; `parts`: connected regions,
            diagonal neighbours too; `distance`: at narrow places; None: chosen by the class names.
        min_area: leave out smaller objects, px, 1 or more.
        export: formats for other programs: `coco`, `geojson`, `panoptic`, or several of these.
        pixel_size: side of a pixel, such as `0.325um`, in place of what the files state.
        truth: folder of true ids, `NAME.png` or `NAME_ids.tif`, to score against; writes scores.json.
        tiles: side of the tiles in px, at native scale; 0: whole images; None: as the model was trained.
        overlap: overlap between neighbouring tiles, as a fraction of the tile's side, 0 <= overlap < 1.
        tta: test-time augmentation: average over flips, and over rotations if the model was trained with them.
        threshold: class name -> probability from which on a pixel belongs to the class, 0 < p <= 1.
        fill_holes: fill holes up to this area, px, or `all`: for all classes but the background, or class name -> px.
        device: cuda, cuda:1, mps or cpu; None: the fastest available.
        reporter: reports notes and progress; None: prints them, as the command does.
    Returns:
        The id images, `NAME_ids.tif`.
    Raises:
        SettingError: the method does not go with the classes, or a keyword does not fit.
        MissingPackageError: the extra `objects` is not installed.
        FilesError: some inputs failed; the others have their files.
        DataError: no images, or only training images to score.
        ModelFileError: a model cannot be read, or the models do not fit together.
        OutputError: an output exists already, or cannot be written.
    """
    from ubend.portable.object_job import CountingOptions
    from ubend.portable.pixel_size import parse_pixel_size
    from ubend.tasks.objects import find_objects

    counting = CountingOptions(
        method,
        min_area,
        [export] if isinstance(export, str) else list(export),
        None if pixel_size is None else parse_pixel_size(pixel_size),
    )
    first, options = _prediction_options(model, tiles, overlap, tta, threshold, None, fill_holes)
    with _reporter(reporter) as log:
        return find_objects(
            first,
            _as_list(paths),
            out,
            counting=counting,
            truth=None if truth is None else Path(truth),
            device=device,
            options=options,
            reporter=log,
        )


def cutout(
    model: Path | str | Sequence[Path | str],
    *,
    paths: Path | str | Sequence[Path | str],
    out: Path | str,
    classes: str | Sequence[str] | Mapping[str, float] = (),
    background: str = "transparent",
    soft: float | None = None,
    tiles: int | None = None,
    overlap: float = 0.25,
    tta: bool = False,
    resume: bool = False,
    device: str | None = None,
    reporter: "Reporter | None" = None,
) -> list[Path]:
    """Cut a class out of images, onto transparency, a colour or another image.

    Args:
        model: a run folder or a model file; or several of the same classes, whose probabilities are averaged.
        paths: files, folders or globs of images.
        out: folder for the cut-outs; existing files are not overwritten.
        classes: one class or several, or class name -> weight of its probability, 0 < weight <= 1; empty: the only
            class besides the background.
        background: `transparent`, a colour such as `white` or `#rrggbb`, or an image file.
        soft: width of the soft edge in px, 0 or more; None: where the model's probabilities are between 0 and 1.
        tiles: side of the tiles in px, at native scale; 0: whole images; None: as the model was trained.
        overlap: overlap between neighbouring tiles, as a fraction of the tile's side, 0 <= overlap < 1.
        tta: test-time augmentation: average over flips, and over rotations if the model was trained with them.
        resume: keep existing cut-outs, and write the missing ones.
        device: cuda, cuda:1, mps or cpu; None: the fastest available.
        reporter: reports notes and progress; None: prints them, as the command does.
    Returns:
        The cut-outs, including existing ones.
    Raises:
        SettingError: no such class, colour, or width.
        FilesError: some inputs failed; the others have their files.
        DataError: no images, or no input can be used.
        ModelFileError: a model cannot be read, or the models do not fit together.
        OutputError: an output exists already, or cannot be written.
    """
    from ubend.tasks.cutout import cut_out_files

    chosen = _texts(classes) if isinstance(classes, Mapping) else [str(name) for name in _as_list(classes)]
    first, options = _prediction_options(model, tiles, overlap, tta)
    with _reporter(reporter) as log:
        return cut_out_files(
            first,
            _as_list(paths),
            out,
            classes=chosen,
            background=background,
            soft_px=None if soft is None else float(soft),
            options=options,
            resume=resume,
            device=device,
            reporter=log,
        )


def data(
    folder: Path | str | None = None,
    *,
    images: Path | str | None = None,
    masks: Path | str | None = None,
    split: Path | str | None = None,
    classes: str | Sequence[str] | None = None,
    values: str | Sequence[str] | None = None,
    channels: int | None = None,
    skip_bad: bool | None = None,
    root: Path | str | None = None,
    seed: int | None = None,
    settings: Mapping[str, Any] | None = None,
    out: Path | str | None = None,
    show: bool = False,
    reporter: "Reporter | None" = None,
) -> Path:
    """Describe a folder of images and masks, and write data.toml, which `ubend.fit` takes in place of the folder.

    Also writes split.csv and samples.png. `ubend.read_folder` returns the pairs and classes as Python objects.

    Args:
        folder: images and masks, the name of a data set, or a data.toml; None: with `images` and `masks`.
        images: folder or glob of the images, in place of `folder`.
        masks: folder or glob of the masks, with `images`.
        split: CSV `file,split[,group]` or `file,group`: the split of each image; None: the splits that the folder
            states, else random ones.
        classes: class names in the order of the mask values, as a list or separated by commas; None: read from the
            folder, else numbered.
        values: meaning of the mask values, `value=name` each, as a list or separated by commas; None: found in the
            masks.
        channels: number of channels to read, 1..16; 1 is grey, 3 is colour; None: as stored.
        skip_bad: leave out pairs that cannot be used, and name them in skipped.csv; None: False.
        root: folder where a named data set is, or is downloaded to; None: the cache.
        seed: random seed of the split, 0..2^63 - 1; None: 0.
        settings: dotted key -> value of any setting of docs/settings.md, such as {"data.val_share": 0.2}.
        out: folder to write; None: `NAME-data`.
        show: also display samples.png, in a notebook or a window.
        reporter: reports what was understood; None: prints it, as the command does.
    Returns:
        The path of data.toml.
    Raises:
        SettingError: an unknown setting, or a value that does not fit.
        PairError, DataError: the folder cannot be used; lists all of its problems.
        OutputError: data.toml or split.csv exists and was edited, or cannot be written.
    """
    from ubend.tasks.data import describe_data
    from ubend.tasks.user_settings import read_user_settings, source_name

    flags = _folder_flags(images, masks, split, classes, values, channels, skip_bad, root) | {"seed": seed}
    with _reporter(reporter) as log:
        chosen = read_user_settings(folder, settings=settings, flags=flags, reporter=log).settings
        folder_out = Path(f"{Path(source_name(chosen)).name}-data" if out is None else out)
        return describe_data(chosen, folder_out, show=show, reporter=log)


def read_folder(
    folder: Path | str | None = None,
    *,
    images: Path | str | None = None,
    masks: Path | str | None = None,
    split: Path | str | None = None,
    classes: str | Sequence[str] | None = None,
    values: str | Sequence[str] | None = None,
    channels: int | None = None,
    skip_bad: bool | None = None,
    root: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> "DataFolder":
    """Find the image and mask pairs of a folder and their classes, as `ubend.fit` does; images are not decoded.

    Args:
        folder: images and masks, the name of a data set, or a data.toml; None: with `images` and `masks`.
        images: folder or glob of the images, in place of `folder`.
        masks: folder or glob of the masks, with `images`.
        split: CSV `file,split[,group]` or `file,group`: the split of each image; None: as the folder states.
        classes: class names in the order of the mask values, as a list or separated by commas; None: read from the
            folder, else numbered.
        values: meaning of the mask values, `value=name` each, as a list or separated by commas; None: found in the
            masks.
        channels: number of channels to read, 1..16; 1 is grey, 3 is colour; None: as stored.
        skip_bad: leave out pairs that cannot be used; `notes` lists them; None: False.
        root: folder where a named data set is, or is downloaded to; None: the cache.
        settings: dotted key -> value of any setting of docs/settings.md.
    Raises:
        SettingError: an unknown setting, or a value that does not fit.
        PairError, DataError: the folder cannot be used; lists all of its problems.
        OutputError: the cache cannot be written.
    """
    from ubend.tasks.reading import read_folder as read
    from ubend.tasks.user_settings import read_user_settings

    flags = _folder_flags(images, masks, split, classes, values, channels, skip_bad, root)
    return read(read_user_settings(folder, settings=settings, flags=flags).settings, folder)


def draw_sample(folder: Path | str, *, count: int = 64, size: int = 256, seed: int = 0) -> None:
    """Draw synthetic microscope images with masks: a data set to try the other functions on.

    Writes `images/`, `masks/` (classes background, cell, contour), `ids/` (the number of the cell at each pixel, for
    `truth` of `ubend.objects`) and classes.txt.

    Args:
        folder: must not exist, or be empty.
        count: number of images, 1 or more.
        size: height and width in px, 64 or more.
        seed: random seed, 0..2^64 - 1.
    Raises:
        SettingError: an argument is out of range.
        OutputError: `folder` is not empty, or cannot be written.
    """
    from ubend.dataset.sample import draw_sample as draw

    draw(Path(folder), count, size, seed)


def _folder_flags(
    images: Path | str | None,
    masks: Path | str | None,
    split: Path | str | None,
    classes: str | Sequence[str] | None,
    values: str | Sequence[str] | None,
    channels: int | None,
    skip_bad: bool | None,
    root: Path | str | None,
) -> dict[str, Any]:
    """The flags that describe a data folder, for `read_user_settings`."""
    return {
        "images": images,
        "masks": masks,
        "split": split,
        "classes": classes,
        "values": values,
        "channels": channels,
        "skip_bad": skip_bad,
        "root": root,
    }


def _prediction_options(
    model: Path | str | Sequence[Path | str],
    tiles: int | None,
    overlap: float,
    tta: bool,
    threshold: Mapping[str, float] | None = None,
    min_area: float | Mapping[str, float] | None = None,
    fill_holes: "float | str | Mapping[str, float | Literal['all']] | None" = None,
) -> "tuple[Path | str, PredictionOptions]":
    """The first model, and the options with the others; SettingError: there is no model."""
    from ubend.core.errors import SettingError
    from ubend.core.i18n import _
    from ubend.portable.mask_predictor import PredictionOptions

    models = _as_list(model)
    if not models:
        raise SettingError(_("no model to predict with; give at least one"), key="models")
    areas, holes = (_texts(area) for area in (min_area, fill_holes))
    return models[0], PredictionOptions(models[1:], tta, _texts(threshold), areas, holes, tiles, overlap)


def _as_list(paths: Path | str | Sequence[Path | str]) -> Sequence[Path | str]:
    return [paths] if isinstance(paths, Path | str) else list(paths)


def _texts(value: Any) -> list[str]:
    """A number, or class name -> number, as on the command line."""
    if isinstance(value, Mapping):
        return [f"{name}={number}" for name, number in value.items()]
    return [] if value is None else [str(value)]


def _reporter(reporter: "Reporter | None") -> "Reporter":
    from ubend.core.progress import Reporter

    return reporter or Reporter()


def _report_one_class(scores: "Scores | None", reporter: "Reporter | None") -> None:
    """The warning that the command prints below the scores."""
    from ubend.evaluation.score_tables import warn_one_class

    if scores is not None and (warning := warn_one_class(scores.data)):
        _reporter(reporter).report(warning)
