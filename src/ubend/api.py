"""The functions of `import ubend`: one for each subcommand, with the flags as keywords.

A keyword has the name of the flag (`--min-area` is `min_area`), with these exceptions:

| flag | keyword |
|---|---|
| `--with MODEL` | `model=[first, second]` |
| `--class NAME` | `classes=` |
| `--from MODEL` | `init_from=` |
| `--set KEY=VALUE` | `settings={KEY: VALUE}` |

A flag that can be repeated becomes a list, and one of the form `CLASS=NUMBER` a dict. Each function reports the lines
of its command through `reporter`, since notes and warnings are part of the log of a long task. Python's `warnings`
would show a line only once per process, with a line number in ubend, and with `-W error` end a training at its last
step.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

    from ubend.core.progress import Reporter
    from ubend.core.settings import Effort, LossKind, Recipe
    from ubend.dataset.arrays import Arrays
    from ubend.evaluation.report import Scores
    from ubend.inference.conditions import Conditions
    from ubend.instances.export import Export
    from ubend.instances.instances import Method
    from ubend.io.probabilities import ProbKind
    from ubend.layouts.pairs import SplitName
    from ubend.tasks.fit_result import FitResult
    from ubend.tasks.reading import DataFolder
    from ubend.training.own_parts import LossFunction


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
    test: Literal["none"] | None = None,
    epochs: int | None = None,
    batch: int | None = None,
    patience: int | None = None,
    skips: str | Sequence[bool] | None = None,
    seed: int | None = None,
    device: str | None = None,
    gpus: int | None = None,
    deterministic: bool | None = None,
    config: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    init_from: Path | str | None = None,
    show: bool = False,
    reporter: "Reporter | None" = None,
) -> "FitResult":
    """Train a U-Net on a folder of images and masks, score it, and write model, scores and logs to a run folder.

    Arguments that are None are chosen from the images and the device, and are reported with the reason. Keywords
    override `config`, and `settings` overrides keywords. Ctrl-C stops after the current step and keeps the model;
    `ubend.resume` continues. Under torchrun all processes train together; only the first one reports and writes.

    Args:
        folder: images and masks in any of the layouts in docs/formats.md, or the name of a data set (oxford-pet,
            kvasir-seg), or a `data.toml` of `ubend.data`; None: use `images` and `masks`.
        out: the run folder, new or empty; None: `runs/NAME-1`, `-2`, ...
        images: folder or pattern of the images, instead of `folder`. Or N arrays (H, W) or (H, W, C), or one array
            (N, H, W[, C]): uint8, uint16 or float (used as float32, in any unit, NaN is invalid); they are written
            to the cache once, as files named 0000, 0001, ...
        masks: folder or pattern of the masks, with `images`. Or N arrays (H, W), or one array (N, H, W), of integers
            0..65535 or bool.
        split: CSV `file,split[,group]` or `file,group` with the split (train, val, test) of each image; None: that of
            the folder, else drawn: 15% validation, 15% test, whole groups. With arrays also a list of N words.
        groups: with arrays: the patient, video or site of each image; images of one group stay in one split.
        classes: class names in the order of the label values, as a list or separated by commas; None: from the folder,
            or generated.
        values: meaning of the label values, `value=name` each, as a list or separated by commas, such as
            `["0=background", "255=polyp"]` or `"#ff0000=road"`; None: found in the masks.
        channels: 1 reads grey, 3 colour, 1..16; None: as stored.
        skip_bad: skip pairs that cannot be used, and list them; None: False.
        root: folder with a named data set, or to download it to; None: the cache.
        recipe: group of settings to start from: `modern`, `tutorial` (the course text's settings, with its faults
            fixed) or `paper` (the original U-Net and its training); None: `modern`, unless `config` states another.
        size: px, 8..8192; images are resized to the area of a square of this side.
        patches: train on crops at native scale; `size` is then the side of a crop, px, 16..8192.
        width: channels of the network's first level, 1..1024; doubled at each deeper level.
        encoder: name of an encoder with ImageNet weights, such as tf_efficientnet_lite2 or resnet18; `none`: the
            U-Net's own; None: tf_efficientnet_lite0, unless `width` or another property of the U-Net is given.
        network: your own module: (N, C, H, W) float32 normalised images -> (N, K, H, W) logits of K classes. If it has
            the attribute `input_multiple`, H and W are padded to multiples of it; otherwise they can have any size. It
            is copied; its weights are the initial ones. Also needed by `ubend.load`, `ubend.evaluate` and
            `ubend.resume`.
        loss: `ce`: cross entropy; `ce-sum`: its sum over the pixels; `dice+ce`: plus 1 - soft Dice; `logdice+ce`:
            plus -log(soft Dice); `dice+focal`: dice+ce with less weight for pixels that are already right; None:
            `logdice+ce`. Or your own function of (logits (N, K, H, W) float32, target (N, H, W) int64 class index, 255
            for ignored pixels, weights (N, H, W) float32, 0 for these) -> scalar; over micro-batches and processes it
            is averaged, weighted by the number of images.
        effort: `quick`: a quarter of the epochs; `best`: `folds` 5, average over mirror images in prediction, and class
            weights if they help; only sets what is not set otherwise; None: `normal`.
        folds: number of models, 2 to 100, each trained without one fold of the images, and stored in one model file;
            see docs/folds.md.
        test: none: no test split; with `folds`, every image is in one fold.
        epochs: how often every image is shown, 1 or more.
        batch: images per step, 1 or more, of all processes together.
        patience: stop after this many epochs without a better validation score; None: never.
        skips: skip connections to keep: `all`, `none`, levels such as `1,2` (1 is full size), or a bool for each
            level; None: all.
        seed: random seed, 0..2^63 - 1; None: 0.
        device: cuda, cuda:1, mps or cpu; None: the fastest one available.
        gpus: with `folds`: number of folds trained in parallel, each on its own GPU; otherwise it must be the number of
            running processes, which are started by `ubend fit --gpus N` or torchrun.
        deterministic: bitwise reproducible on a GPU; slower; None: False.
        config: TOML file of settings, such as a run's settings.toml.
        settings: dotted key -> value of any setting in docs/settings.md, such as {"train.epochs": 5}.
        init_from: run folder or model file of a trained model whose weights the training starts from.
        show: also display each epoch's panel, in a notebook or a window.
        reporter: reports notes, choices and epochs; None: prints them, like the command.
    Returns:
        The run folder, and the scores on the test split.
    Raises:
        SettingError: an unknown setting, a value out of range, or settings that contradict each other.
        PairError, DataError: all problems of the folder together.
        ModelFileError: `init_from` cannot be used.
        OutputError: `out` is not empty, or cannot be written.
        TrainingError: the loss is no longer finite.
    """
    from ubend.tasks.folds import fit as run_fit

    result = run_fit(
        folder,
        out,
        recipe=recipe,
        config=config,
        settings=settings,
        show=show,
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
        test=test,
        epochs=epochs,
        batch=batch,
        patience=patience,
        skips=skips,
        seed=seed,
        device=device,
        gpus=gpus,
        deterministic=deterministic,
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
    reporter: "Reporter | None" = None,
) -> "FitResult":
    """Resume an interrupted training, with the same result as without the interruption; a finished one is scored again.

    Args:
        run: the run folder.
        network: your own module, if the run was started with one; its weights do not matter.
        loss: your own loss function, if the run was started with one.
        gpus: see `fit`.
        show: also display each epoch's panel.
        reporter: reports notes and epochs; None: prints them, like the command.
    Raises:
        OutputError: there is no run to resume, or it is from an older version.
        SettingError: `network` or `loss` is missing, or does not fit the run.
        TrainingError: the images have changed since the run was started.
    """
    from ubend.tasks.folds import resume as run_resume

    result = run_resume(run, network=network, loss=loss, gpus=gpus, show=show, reporter=reporter)
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
    network: "nn.Module | None" = None,
    device: str | None = None,
    tiles: int | None = None,
    out: Path | str | None = None,
    reporter: "Reporter | None" = None,
) -> "Scores":
    """Score a model on the test split of its own run, or on any folder of images and masks.

    The model's training images are recognised by their pixels and left out, unless `subset` is train. If all images of
    a folder are the model's own (the data of its run, moved), they keep their splits. Classes that the masks of
    `folder` cannot contain have no score.

    Args:
        model: a run folder or a model file.
        folder: images with masks, or a data set by name; None: those of the run (then `model` is a run folder).
        images: folder or pattern of the images, instead of `folder`; or arrays, see `ubend.fit`.
        masks: folder or pattern of the masks, or arrays, with `images`.
        split: CSV `file,split[,group]` or `file,group` with the split of each image.
        values: meaning of the label values in `folder`, `value=name` each, with the model's class names; None: matched
            by the names that the folder states, else the values of the model's own masks.
        skip_bad: skip pairs that cannot be used; they are listed in `skipped` of the scores.
        root: folder with a named data set, or to download it to; None: the cache.
        subset: the split to score: train, val or test; None: test if there is one, else validation, else all.
        network: your own module, if the model was trained with one; its weights do not matter.
        device: cuda, cuda:1, mps or cpu; None: the fastest one available.
        tiles: side of the tiles in px, at native scale; 0: whole images; None: as the model was trained.
        out: JSON file to write the scores to as well; it must not exist.
        reporter: reports notes and warnings; None: prints them, like the command.
    Raises:
        PairError: pairs that cannot be used, all together.
        DataError: no images in the subset, or only training images.
        ModelFileError: the model cannot be read.
        OutputError: `out` exists already, or `model` has no data list.
        SettingError: there is no such device, or `tiles` is negative.
    """
    from ubend.core.files import refuse_existing, write_json
    from ubend.evaluation.report import Scores
    from ubend.tasks.evaluate import evaluate as run_evaluate

    refuse_existing([] if out is None else [Path(out)])
    scores = Scores(
        run_evaluate(
            model,
            folder,
            subset=subset,
            device=device,
            tiles=tiles,
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
    reporter: "Reporter | None" = None,
) -> list[Path]:
    """Write masks of images, videos and scans to a folder, with overlays and a table of the class shares.

    For arrays, or one image at a time, use `ubend.load(model)(image)`. docs/predictions.md describes the files.

    Args:
        model: a run folder or a model file; or several with the same classes, whose probabilities are averaged.
        paths: files, folders or patterns of images; videos; scans (NIfTI files, folders of DICOM).
        out: folder for masks, overlays and shares.csv; files in it are not overwritten.
        tiles: side of the tiles in px, at native scale; 0: whole images; None: as the model was trained.
        overlap: overlap between neighbouring tiles, as a fraction of the tile's side, 0 <= overlap < 1.
        tta: test-time augmentation: average over mirror images, and rotations if the model was trained with them.
        threshold: class name -> probability from which a pixel gets the class, 0 < p <= 1.
        min_area: remove smaller regions, px: one number for all classes except the background, or class name -> px.
        fill_holes: fill holes up to this area, px, or `all`: for all classes except the background, or class name ->
            px.
        prob: also write probabilities, for images: `uint8` or `uint16` TIFF, or `npz`.
        resume: keep outputs that exist already, and write the missing ones.
        window: intensity window of scans: `lung`, ..., or `CENTER,WIDTH` in the scan's units.
        device: cuda, cuda:1, mps or cpu; None: the fastest one available.
        reporter: reports notes and progress; None: prints them, like the command.
    Returns:
        The mask files, including existing ones.
    Raises:
        SettingError: an argument is invalid, or does not fit the model or the paths.
        FilesError: some inputs failed; the results of the others are written.
        DataError: nothing to predict, or no input can be used.
        ModelFileError: a model cannot be read, or the models do not fit together.
        OutputError: an output exists already, or cannot be written.
    """
    from ubend.tasks.predict import predict_paths

    first, conditions = _conditions(model, tiles, overlap, tta, threshold, min_area, fill_holes)
    with _reporter(reporter) as log:
        return predict_paths(
            first,
            _as_list(paths),
            out,
            device=device,
            window=window,
            conditions=conditions,
            prob=prob,
            resume=resume,
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
    """Number the objects in images, measure and outline them: `objects.csv`, `images.csv`, `NAME_ids.tif`, overlays.

    docs/objects.md describes the files and columns. Needs the extra `objects`.

    Args:
        model: a run folder or a model file; or several with the same classes, whose probabilities are averaged.
        paths: files, folders or patterns of images.
        out: folder for ids, outlines and tables; files in it are not overwritten.
        method: how touching objects are separated: `contour`: by a class of that name; `parts`: connected regions;
            `distance`: at narrow places; None: chosen by the names of the classes.
        min_area: remove smaller objects, px, 1 or more.
        export: also write the objects for other programs: `coco`, `geojson`, `panoptic`, or several of these.
        pixel_size: side of a pixel, such as `0.325um`, instead of what the files state.
        truth: folder of true object ids, `NAME.png` or `NAME_ids.tif`, to compare with; writes scores.json.
        tiles: side of the tiles in px, at native scale; 0: whole images; None: as the model was trained.
        overlap: overlap between neighbouring tiles, as a fraction of the tile's side, 0 <= overlap < 1.
        tta: test-time augmentation: average over mirror images, and rotations if the model was trained with them.
        threshold: class name -> probability from which a pixel gets the class, 0 < p <= 1.
        fill_holes: fill holes up to this area, px, or `all`: for all classes except the background, or class name ->
            px.
        device: cuda, cuda:1, mps or cpu; None: the fastest one available.
        reporter: reports notes and progress; None: prints them, like the command.
    Returns:
        The id images, `NAME_ids.tif`.
    Raises:
        SettingError: the method does not fit the classes, or an argument is invalid.
        MissingPackageError: the extra `objects` is not installed.
        FilesError: some inputs failed; the results of the others are written.
        DataError: no images, or only training images to score.
        ModelFileError: a model cannot be read, or the models do not fit together.
        OutputError: an output exists already, or cannot be written.
    """
    from ubend.io.pixel_size import parse_pixel_size
    from ubend.tasks.objects import CountingOptions, find_objects

    counting = CountingOptions(
        method,
        min_area,
        [export] if isinstance(export, str) else list(export),
        None if truth is None else Path(truth),
        None if pixel_size is None else parse_pixel_size(pixel_size),
    )
    first, conditions = _conditions(model, tiles, overlap, tta, threshold, None, fill_holes)
    with _reporter(reporter) as log:
        return find_objects(
            first, _as_list(paths), out, counting=counting, device=device, conditions=conditions, reporter=log
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
    """Cut a class out of images, onto a transparent background, a colour or another image.

    Args:
        model: a run folder or a model file; or several with the same classes, whose probabilities are averaged.
        paths: files, folders or patterns of images.
        out: folder for the cut-outs; files in it are not overwritten.
        classes: what to cut out: one class, several, or class name -> weight of its probability, 0 < weight <= 1;
            empty: the only class except the background.
        background: `transparent`, a colour such as `white` or `#rrggbb`, or an image file.
        soft: width of the edge in px, 0 or more; None: as wide as the model is uncertain.
        tiles: side of the tiles in px, at native scale; 0: whole images; None: as the model was trained.
        overlap: overlap between neighbouring tiles, as a fraction of the tile's side, 0 <= overlap < 1.
        tta: test-time augmentation: average over mirror images, and rotations if the model was trained with them.
        resume: keep cut-outs that exist already, and write the missing ones.
        device: cuda, cuda:1, mps or cpu; None: the fastest one available.
        reporter: reports notes and progress; None: prints them, like the command.
    Returns:
        The cut-outs, including existing ones.
    Raises:
        SettingError: no such class, colour, or width.
        FilesError: some inputs failed; the results of the others are written.
        DataError: no images, or no input can be used.
        ModelFileError: a model cannot be read, or the models do not fit together.
        OutputError: an output exists already, or cannot be written.
    """
    from ubend.tasks.cutout import cut_out_files

    chosen = _texts(classes) if isinstance(classes, Mapping) else [str(name) for name in _as_list(classes)]
    first, conditions = _conditions(model, tiles, overlap, tta)
    with _reporter(reporter) as log:
        return cut_out_files(
            first,
            _as_list(paths),
            out,
            classes=chosen,
            background=background,
            soft_px=None if soft is None else float(soft),
            conditions=conditions,
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
    """Report the content of a folder, show samples, and write data.toml, which `ubend.fit` takes instead of the folder.

    Also writes split.csv and samples.png. For the pairs and classes as Python objects use `ubend.read_folder`.

    Args:
        folder: images and masks, the name of a data set, or a data.toml; None: use `images` and `masks`.
        images: folder or pattern of the images, instead of `folder`.
        masks: folder or pattern of the masks, with `images`.
        split: CSV `file,split[,group]` or `file,group` with the split of each image; None: that of the folder, else
            drawn.
        classes: class names in the order of the label values, as a list or separated by commas; None: from the folder,
            or generated.
        values: meaning of the label values, `value=name` each, as a list or separated by commas; None: found in the
            masks.
        channels: 1 reads grey, 3 colour, 1..16; None: as stored.
        skip_bad: skip pairs that cannot be used, and list them in skipped.csv; None: False.
        root: folder with a named data set, or to download it to; None: the cache.
        seed: of the split, 0..2^63 - 1; None: 0.
        settings: dotted key -> value of any setting in docs/settings.md, such as {"data.val_share": 0.2}.
        out: folder to write; None: `NAME-data`.
        show: also display samples.png, in a notebook or a window.
        reporter: reports what was found; None: prints it, like the command.
    Returns:
        The path of data.toml.
    Raises:
        SettingError: an unknown setting, or an invalid value.
        PairError, DataError: all problems of the folder together.
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
    """Find the image and mask pairs of a folder and their classes, like `ubend.fit`; images are not decoded.

    Args:
        folder: images and masks, the name of a data set, or a data.toml; None: use `images` and `masks`.
        images: folder or pattern of the images, instead of `folder`.
        masks: folder or pattern of the masks, with `images`.
        split: CSV `file,split[,group]` or `file,group` with the split of each image; None: that of the folder.
        classes: class names in the order of the label values, as a list or separated by commas; None: from the folder,
            or generated.
        values: meaning of the label values, `value=name` each, as a list or separated by commas; None: found in the
            masks.
        channels: 1 reads grey, 3 colour, 1..16; None: as stored.
        skip_bad: skip pairs that cannot be used; they are listed in `notes`; None: False.
        root: folder with a named data set, or to download it to; None: the cache.
        settings: dotted key -> value of any setting in docs/settings.md.
    Raises:
        SettingError: an unknown setting, or an invalid value.
        PairError, DataError: all problems of the folder together.
        OutputError: the cache cannot be written.
    """
    from ubend.tasks.reading import read_folder as read
    from ubend.tasks.user_settings import read_user_settings

    flags = _folder_flags(images, masks, split, classes, values, channels, skip_bad, root)
    return read(read_user_settings(folder, settings=settings, flags=flags).settings, folder)


def draw_sample(folder: Path | str, *, count: int = 64, size: int = 256, seed: int = 0) -> None:
    """Draw synthetic microscope images with masks: a data set for trying the other functions.

    Writes `images/`, `masks/` (classes background, cell, contour), `ids/` (the id of the cell at each pixel, for
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
    """The arguments about images and masks as flags for `read_user_settings`."""
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


def _conditions(
    model: Path | str | Sequence[Path | str],
    tiles: int | None,
    overlap: float,
    tta: bool,
    threshold: Mapping[str, float] | None = None,
    min_area: float | Mapping[str, float] | None = None,
    fill_holes: "float | str | Mapping[str, float | Literal['all']] | None" = None,
) -> "tuple[Path | str, Conditions]":
    """(first model, conditions including the other models).

    Raises:
        SettingError: no model is given.
    """
    from ubend.core.errors import SettingError
    from ubend.core.i18n import _
    from ubend.inference.conditions import Conditions

    models = _as_list(model)
    if not models:
        raise SettingError(_("no model to predict with; give at least one"), key="models")
    areas, holes = (_texts(area) for area in (min_area, fill_holes))
    return models[0], Conditions(models[1:], tta, _texts(threshold), areas, holes, tiles, overlap)


def _as_list(some: Path | str | Sequence[Path | str]) -> Sequence[Path | str]:
    return [some] if isinstance(some, Path | str) else list(some)


def _texts(value: Any) -> list[str]:
    """Convert a number, or a mapping of class names to numbers, to the syntax of the command line."""
    if isinstance(value, Mapping):
        return [f"{name}={number}" for name, number in value.items()]
    return [] if value is None else [str(value)]


def _reporter(reporter: "Reporter | None") -> "Reporter":
    from ubend.core.progress import Reporter

    return reporter or Reporter()


def _report_one_class(scores: "Scores | None", reporter: "Reporter | None") -> None:
    """Report the warning that the command prints below the scores."""
    from ubend.evaluation.report import warn_one_class

    if scores is not None and (warning := warn_one_class(scores.data)):
        _reporter(reporter).report(warning)
