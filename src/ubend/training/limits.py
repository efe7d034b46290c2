"""What limits a training: data, computing or memory; said once, with what it was measured by, and what would help.

Nothing is waited for that training does not wait for anyway, but once: where measuring begins, behind the first
steps, in which kernels are compiled and the step is captured.
"""

import copy
import time
from dataclasses import dataclass

import torch
from torch import nn

from ubend.config import settled
from ubend.data.patches import Patches
from ubend.language import _
from ubend.model.networks import Network
from ubend.model.paper import PaperUNet, input_side, level_sides
from ubend.model.unet import UNet
from ubend.training.checkpoint import TrainingState
from ubend.training.step import Job, micro_batch_of

_FIRST_STEPS = 5  # are not measured
_FEWEST_STEPS = 5  # that say something
_READING = 0.2  # of the steps' time spent waiting for pictures: reading is what limits
_BETWEEN = 0.5  # of all time
_GIB = 2**30


@dataclass(frozen=True)
class Measured:
    """An epoch.

    Attributes:
        steps_s, images, flops: of the steps that were measured; the last two of all processes together.
        reading: share of that time spent waiting for pictures, 0..1.
        between: share of the epoch's time that follows its steps: validation, panel, saving; 0..1.
        ahead: how many steps the device still had to do when the last one had been given to it; None: it is the
            processor itself.
        micro_batch: pictures at a time that memory has room for; None: a batch has room.
        batch: pictures of a step, in this process.
        memory: bytes of the device in use, and there are; None: unknown.
        by_window: pictures are read window by window, in every epoch.
    """

    steps_s: float
    images: int
    flops: float
    reading: float
    between: float
    ahead: float | None
    micro_batch: int | None
    batch: int
    memory: tuple[int, int] | None
    by_window: bool = False


def describe_limit(measured: Measured) -> str:
    """One line: what limits, the figures, what would help."""
    figures = _(
        "{rate:,.0f} img/s, {tflops:,.2f} TFLOP/s; waiting for pictures {reading} of the steps' time; validation, "
        "panel and saving {between} of the epoch's"
    ).format(
        rate=measured.images / measured.steps_s,
        tflops=measured.flops / measured.steps_s / 1e12,
        reading=f"{measured.reading:.0%}",
        between=f"{measured.between:.0%}",
    )
    if measured.memory is not None:
        used, total = (number / _GIB for number in measured.memory)
        figures += _("; {used:.1f} of {total:.1f} GiB of the device's memory in use").format(used=used, total=total)
    if measured.reading >= _READING and measured.by_window:
        says = _(
            "the run is limited by data: {figures}. Windows are read from the cache each time: a faster disk for it "
            "(UBEND_CACHE) helps, or more main memory, in which the system keeps what was read"
        )
    elif measured.reading >= _READING:
        says = _(
            "the run is limited by data: {figures}. Pictures that fit into the device's memory are read only once: a "
            "smaller --size or a device with more memory helps, or a faster disk"
        )
    elif measured.micro_batch is not None:
        says = _(
            "the run is limited by memory, which has room for {micro} of {batch} pictures at a time: {figures}. A "
            "smaller --size, --width or data.window helps, or a device with more memory"
        )
    elif measured.between >= _BETWEEN:
        says = _(
            "the run is limited by what follows each epoch: {figures}. Epochs of so few steps are short; fewer "
            "--epochs make the run shorter"
        )
    elif measured.ahead is not None and measured.ahead < 1:
        says = _(
            "the run is limited by this computer's processor, which prepares the steps: {figures}. A larger --batch "
            "gives the device more to do"
        )
    else:
        says = _("the run is limited by computing: {figures}. Nothing to change: the device is busy")
    return says.format(figures=figures, micro=measured.micro_batch, batch=measured.batch)


def count_step_flops(net: Network, window_hw: tuple[int, int]) -> int:
    """Of the convolutions, for one picture, forward and backward: a multiplication and an addition each."""
    if isinstance(net, PaperUNet):
        return _count_valid_flops(net, window_hw)
    height, width = (-(-side >> net.depth) << net.depth for side in window_hw)  # as the network pads it
    if not isinstance(net, UNet):
        return 3 * _count_forward_flops(net, (height, width))
    products, first, pixels = 0, net.stem.get_parameter("0.weight"), height * width
    blocks: list[tuple[nn.Module, int]] = [(net.stem, 0), (net.head, 0)]
    blocks += [(encoder, level + 1) for level, encoder in enumerate(net.encoders)]
    for level, decoder in zip(reversed(range(net.depth)), net.decoders, strict=True):
        # every tap of a transposed convolution meets every pixel of its input
        blocks += [(decoder.get_submodule("block"), level), (decoder.get_submodule("up"), level + 1)]
    for block, level in blocks:
        weights = sum(parameter.numel() for parameter in block.parameters() if parameter.ndim == 4)
        products += weights * (pixels >> 2 * level)
    return 2 * (3 * products - first.numel() * pixels)  # the picture itself needs no gradient


def _count_valid_flops(net: PaperUNet, window_hw: tuple[int, int]) -> int:
    """The same of the network without padding, whose maps shrink from convolution to convolution."""
    (down_y, up_y), (down_x, up_x) = (level_sides(input_side(side, net.depth), net.depth) for side in window_hw)
    products = 0
    blocks = [net.stem, *net.encoders, *(decoder.get_submodule("block") for decoder in net.decoders)]
    for block, ys, xs in zip(blocks, [*down_y, *up_y], [*down_x, *up_x], strict=True):
        for number, name in enumerate(("0.weight", "2.weight"), 1):
            products += block.get_parameter(name).numel() * ys[number] * xs[number]
    first = net.stem.get_parameter("0.weight").numel() * down_y[0][1] * down_x[0][1]
    for decoder, ys, xs in zip(net.decoders, up_y, up_x, strict=True):
        # every tap meets every pixel of the input
        products += decoder.get_parameter("up.weight").numel() * (ys[0] // 2) * (xs[0] // 2)
    products += net.head.weight.numel() * up_y[-1][2] * up_x[-1][2]
    return 2 * (3 * products - first)


def _count_forward_flops(net: Network, window_hw: tuple[int, int]) -> int:
    """Of any network's convolutions and products of matrices, for one picture; counted, not computed."""
    from torch.utils.flop_counter import FlopCounterMode

    image = torch.empty(1, net.channels, *window_hw, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(net).to("meta").eval()(image)
    return int(counter.get_total_flops())


class Watch:
    """Measures the first epoch that has enough steps behind the first ones of this process."""

    def __init__(self, job: Job, state: TrainingState) -> None:
        self._job, self._state = job, state
        self._taken = 0  # steps of this process
        self._measured = 0  # of them, in this epoch
        self._told = False
        self._began = self._waited_s = self._steps_s = self._lag_s = self._ended = 0.0

    def begin_epoch(self) -> None:
        self._measured = 0
        if self._taken >= _FIRST_STEPS:
            self._start()

    def count_step(self) -> None:
        """A step has been given to the device."""
        self._taken += 1
        if self._taken == _FIRST_STEPS:
            self._wait()
            self._start()
        elif self._taken > _FIRST_STEPS:
            self._measured += 1

    def end_steps(self) -> None:
        """The epoch's last step has been given to the device, and its losses will be waited for."""
        given = time.monotonic()
        self._wait()
        self._ended = time.monotonic()
        self._steps_s, self._lag_s = self._ended - self._began, self._ended - given
        self._waited_s = self._job.batches.waited_s - self._waited_s

    def describe(self, steps: int) -> str | None:
        """What limits the run, when all that follows an epoch's steps is done; None: said before, or not known yet.

        Args:
            steps: of the epoch.
        """
        if self._told or self._measured < _FEWEST_STEPS:
            return None
        self._told = True
        job, device = self._job, self._job.batches.pictures.device
        between_s, one_s = time.monotonic() - self._ended, self._steps_s / self._measured
        images = self._measured * settled(job.settings.batch)
        micro = micro_batch_of(job, self._state)
        forced = self._state.progress.micro_batch == micro < job.batches.batch
        memory = None
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            memory = total - free, total
        return describe_limit(
            Measured(
                self._steps_s,
                images,
                images * count_step_flops(self._state.model, job.batches.window_hw),
                self._waited_s / self._steps_s,
                between_s / (between_s + steps * one_s),
                None if device.type == "cpu" else self._lag_s / one_s,
                micro if forced else None,
                job.batches.batch,
                memory,
                isinstance(job.batches.pictures, Patches),
            )
        )

    def _start(self) -> None:
        self._began, self._waited_s = time.monotonic(), self._job.batches.waited_s

    def _wait(self) -> None:
        """Until the device has done what it was given."""
        if not self._told:
            self._state.sums.cpu()
