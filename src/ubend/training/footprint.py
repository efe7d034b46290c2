"""The most memory that a training step takes, counted without taking it.

The forward pass is gone through on paper: every map is entered when it comes into being, with what its gradient
will need (what its autograd node saves), and struck out when nothing holds it any more. The backward pass follows
from that, in the order in which autograd works. The highest sum is what `torch.cuda.max_memory_allocated` says, but
for cuDNN's workspaces and for tensors of a few numbers a channel. tests/test_footprint.py follows the tensors of
real steps and compares.

Sizes are bytes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ubend.config import LossKind
from ubend.model.unet import UNet

_ALLOCATED = 512  # torch's allocator gives out multiples of it
_FLOAT, _INDEX = 4, 8  # of a float32; of max pooling's int64
_FILLED_CHANNELS = 8  # the fused network fills a picture's channels up to a multiple of these
_HEAD_CHANNELS = 128  # up to here the fused network's head reads its map before that is normalised


@dataclass(frozen=True)
class StepPlan:
    """What decides how much a step takes, besides the network.

    Attributes:
        batch: pictures of a step on this device.
        micro_batch: of which so many are in the network at once.
        window_hw: (H, W) of a picture.
        half: whether convolutions compute in bfloat16.
        fused: whether the network goes the way of model/fused.py; else layer by layer.
        fused_loss: whether the loss is one kernel; else torch's operations.
        loss: which.
    """

    batch: int
    micro_batch: int
    window_hw: tuple[int, int]
    half: bool
    fused: bool
    fused_loss: bool
    loss: LossKind = "dice+ce"


def predict_step_bytes(net: UNet, plan: StepPlan) -> int:
    """The most that a step takes besides the weights, their average and the optimiser's moments.

    Drawing and augmenting are over when the network begins, and take less (about 75 bytes a pixel).
    """
    paper = _Paper()
    pixels = math.prod(plan.window_hw)
    paper.enter(plan.batch * pixels * (net.channels * _FLOAT + 1))  # images and targets
    if plan.micro_batch < plan.batch:  # from the second part on, gradients are added to those of the first
        paper.enter(_FLOAT * sum(parameter.numel() for parameter in net.parameters()))
        paper.adds_gradients = True
    forward = _Forward(net, plan, paper)
    logits, planes = forward.run(), forward.pixels * net.classes
    if plan.fused_loss:
        _enter_fused_loss(paper, logits, planes)
    else:
        _enter_loss(paper, logits, planes, plan.loss, copied=not forward.own_head)
    paper.differentiate()
    return paper.peak


def count_step_flops(net: UNet, window_hw: tuple[int, int]) -> int:
    """Of the convolutions, for one picture, forward and backward: a multiplication and an addition each."""
    pixels = _padded_pixels(net, window_hw)
    products, first = 0, net.stem.get_parameter("0.weight")
    blocks: list[tuple[nn.Module, int]] = [(net.stem, 0), (net.head, 0)]
    blocks += [(encoder, level + 1) for level, encoder in enumerate(net.encoders)]
    for level, decoder in zip(reversed(range(net.depth)), net.decoders, strict=True):
        # every tap of a transposed convolution meets every pixel of its input
        blocks += [(decoder.get_submodule("block"), level), (decoder.get_submodule("up"), level + 1)]
    for block, level in blocks:
        weights = sum(parameter.numel() for parameter in block.parameters() if parameter.ndim == 4)
        products += weights * (pixels >> 2 * level)
    return 2 * (3 * products - first.numel() * pixels)  # the picture itself needs no gradient


def _padded_pixels(net: UNet, window_hw: tuple[int, int]) -> int:
    """Of a picture, as the network pads it."""
    height, width = (-(-side >> net.depth) << net.depth for side in window_hw)
    return height * width


class _Entry:
    """A tensor: its size, how many hold it, and its gradient; a leaf's gradient stays until the optimiser's step."""

    def __init__(self, size: int, leaf: bool = False) -> None:
        self.size, self.leaf, self.holders = -(-size // _ALLOCATED) * _ALLOCATED, leaf, 1
        self.gradient: _Entry | None = None


@dataclass(frozen=True)
class _Node:
    """What autograd keeps of an operation: (input, size of its gradient; None: a view of the output's gradient)."""

    outputs: Sequence[_Entry]
    inputs: Sequence[tuple[_Entry, int | None]]
    saved: Sequence[_Entry]


class _Paper:
    """The account: what is taken now, what was at most, and the operations to be differentiated."""

    def __init__(self) -> None:
        self.now = self.peak = 0
        self.adds_gradients = False
        self._nodes: list[_Node] = []

    def enter(self, size: int) -> _Entry:
        """A new tensor, held by whoever made it until it is dropped."""
        entry = _Entry(size)
        self.now += entry.size
        self.peak = max(self.peak, self.now)
        return entry

    def drop(self, *entries: _Entry) -> None:
        for entry in entries:
            entry.holders -= 1
            if not entry.holders:
                self.now -= entry.size

    def apply(
        self, outputs: Sequence[_Entry], inputs: Sequence[tuple[_Entry, int | None]], saved: Sequence[_Entry] = ()
    ) -> None:
        """Note an operation for the backward pass."""
        for entry in saved:
            entry.holders += 1
        self._nodes.append(_Node(outputs, inputs, saved))

    def differentiate(self) -> None:
        """The backward pass: the last operation first; what a node has saved is let go when it has worked."""
        while self._nodes:
            node = self._nodes.pop()
            came = [output.gradient for output in node.outputs if output.gradient is not None]
            for output in node.outputs:
                output.gradient = None
            made = [(entry, self._gradient(size, came)) for entry, size in node.inputs]
            self.drop(*node.saved, *came)
            for entry, gradient in made:
                self._add_gradient(entry, gradient)

    def _gradient(self, size: int | None, came: Sequence[_Entry]) -> _Entry:
        if size is not None:
            return self.enter(size)
        came[0].holders += 1
        return came[0]

    def _add_gradient(self, entry: _Entry, gradient: _Entry) -> None:
        if entry.leaf and self.adds_gradients:
            self.drop(gradient)
        elif entry.gradient is None:
            entry.gradient = gradient
        else:
            both = self.enter(gradient.size)
            self.drop(entry.gradient, gradient)
            entry.gradient = both


class _Forward:
    """The network's forward pass on one micro-batch; each method drops the map that it is given."""

    def __init__(self, net: UNet, plan: StepPlan, paper: _Paper) -> None:
        self.net, self.plan, self.paper = net, plan, paper
        self.pixels = plan.micro_batch * _padded_pixels(net, plan.window_hw)  # of all pictures, at full size
        self.item = 2 if plan.half else _FLOAT  # of a number in a map
        self.own_head = plan.fused and net.width <= _HEAD_CHANNELS
        self.copies: dict[nn.Module, _Entry] = {}  # of weights, in bfloat16
        self.lingering: list[_Entry] = []  # weights, copied but not used
        self.lingering_maps: list[_Entry] = []  # the last transposed convolution's output

    def run(self) -> _Entry:
        """The logits."""
        net, paper = self.net, self.paper
        picture = paper.enter(self.pixels * net.channels * _FLOAT)  # normalised
        if self.plan.fused and self.plan.half:
            self._copy_weights()
        last = self._block(net.stem, self._enter_picture(picture), 0)
        skips = []
        for level, encoder in enumerate(net.encoders):
            pooled, *skip = self._pool(last, level)
            skips.append(skip)
            last = self._block(encoder.block, pooled, level + 1)
        for level, decoder in zip(reversed(range(net.depth)), net.decoders, strict=True):
            last = self._block(decoder.block, self._join(last, level, decoder.up, skips.pop()), level)
        logits = self._head(last)
        paper.drop(picture, *self.lingering, *self.lingering_maps, *self.copies.values())
        return logits

    def _size(self, level: int, share: float = 1) -> int:
        """Of a map of a level's pixels and channels, or a share of them."""
        return int(share * self.item * self.net.width * self.pixels) >> level

    def _enter_picture(self, picture: _Entry) -> _Entry:
        """What the first convolution is given."""
        channels = self.net.channels
        given = picture
        given.holders += 1
        if self.plan.fused and channels % _FILLED_CHANNELS:
            channels += -channels % _FILLED_CHANNELS
            self.paper.drop(given)
            given = self.paper.enter(self.pixels * channels * _FLOAT)
        if self.plan.half:
            copy = self.paper.enter(self.pixels * channels * self.item)
            self.paper.drop(given)
            given = copy
        return given

    def _block(self, block: Any, features: _Entry, level: int) -> _Entry:
        """A ConvBlock; in the fused network without its last batch norm, which belongs to where the map goes."""
        between = self._norm(self._convolve(block[0], features, self._size(level), block is not self.net.stem))
        y = self._convolve(block[3], between, self._size(level))
        return y if self.plan.fused else self._norm(y)

    def _convolve(self, layer: Any, features: _Entry, size: int, differentiated: bool = True) -> _Entry:
        weight, count = self._weight(layer), layer.weight.numel()
        out = self.paper.enter(size)
        inputs = [(features, features.size)] if differentiated else []
        inputs.append((weight, self.item * count))
        self.paper.apply([out], inputs, [features, weight])
        self.paper.drop(features)
        return out

    def _weight(self, layer: Any) -> _Entry:
        if not self.plan.half:
            return _Entry(0, leaf=True)
        if layer not in self.copies:  # autocast makes one, and keeps it until the pass ends
            self.copies[layer] = self.paper.enter(self.item * layer.weight.numel())
            self.paper.apply([self.copies[layer]], [(_Entry(0, leaf=True), _FLOAT * layer.weight.numel())])
        return self.copies[layer]

    def _copy_weights(self) -> None:
        """All at once, as the fused network does; autocast copies again what it gives to torch's own layers."""
        net, copies, inputs = self.net, [], []
        plain = [decoder.up for decoder, skip in zip(net.decoders, reversed(net.skips), strict=True) if not skip]
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                copy = self.paper.enter(self.item * layer.weight.numel())
                if layer is net.head or layer in plain:
                    self.lingering.append(copy)
                else:
                    self.copies[layer] = copy
                    copies.append(copy)
                    inputs.append((_Entry(0, leaf=True), _FLOAT * layer.weight.numel()))
        self.paper.apply(copies, inputs)

    def _norm(self, y: _Entry) -> _Entry:
        """Batch norm and ReLU: one operation, or two of which the second writes over the first one's map."""
        z = self.paper.enter(y.size)
        self.paper.apply([z], [(y, y.size)], [y])
        if not self.plan.fused:
            self.paper.apply([z], [(z, z.size)], [z])
        self.paper.drop(y)
        return z

    def _pool(self, last: _Entry, level: int) -> tuple[_Entry, ...]:
        """The pooled map, and what the skip connection holds: the map, or where it lies already in the joined one."""
        paper, quarter = self.paper, self._size(level, 0.25)
        if not self.plan.fused:
            pooled, maxima = paper.enter(quarter), paper.enter(quarter // self.item * _INDEX)
            paper.apply([pooled], [(last, last.size)], [last, maxima])
            paper.drop(maxima)
            return pooled, last
        joined = [paper.enter(self._size(level, 2))] if self.net.skips[level] else []
        pooled, skipped = paper.enter(quarter), _Entry(0)
        paper.apply([pooled, skipped], [(last, last.size)], [last])
        paper.drop(last)
        return pooled, skipped, *joined

    def _join(self, last: _Entry, level: int, up: Any, skip: Sequence[_Entry]) -> _Entry:
        """The transposed convolution, and what the level's skip connection holds beside it."""
        paper = self.paper
        if self.plan.fused:
            last = self._norm(last)
        grown = self._convolve(up, last, self._size(level))
        if not self.net.skips[level]:
            if not self.plan.fused:
                paper.drop(*skip)
            return grown
        paper.drop(*self.lingering_maps)
        self.lingering_maps = [grown]
        joined = skip[1] if self.plan.fused else paper.enter(self._size(level, 2))
        paper.apply([joined], [(skip[0], None), (grown, grown.size if self.plan.fused else None)])
        if not self.plan.fused:
            paper.drop(skip[0])
        return joined

    def _head(self, last: _Entry) -> _Entry:
        paper, planes = self.paper, self.pixels * self.net.classes
        if self.own_head:
            logits = paper.enter(planes * _FLOAT)
            paper.apply([logits], [(last, last.size)], [last])
            paper.drop(last)
            return logits
        logits = self._convolve(self.net.head, self._norm(last) if self.plan.fused else last, planes * self.item)
        return _convert(paper, logits, planes * _FLOAT) if self.plan.fused and self.plan.half else logits


def _convert(paper: _Paper, entry: _Entry, size: int) -> _Entry:
    """A copy in another type, of which alone is gone on."""
    copy = paper.enter(size)
    paper.apply([copy], [(entry, entry.size)])
    paper.drop(entry)
    return copy


def _enter_fused_loss(paper: _Paper, logits: _Entry, planes: int) -> None:
    """ubend.kernels.loss: one operation, which keeps float32 logits; the caller holds its own."""
    given = logits
    given.holders += 1
    if given.size < planes * _FLOAT:
        given = _convert(paper, given, planes * _FLOAT)
    paper.apply([_Entry(0)], [(given, given.size)], [given])
    paper.drop(given)


def _enter_loss(paper: _Paper, logits: _Entry, planes: int, kind: LossKind, copied: bool) -> None:
    """losses.py in torch's operations: all that its names hold when it returns, and what is kept of that.

    Args:
        copied: whether the logits are not yet float32, one plane after the other.
    """
    names = ["masked"] + (["float32 logits"] if copied else [])
    kept = ["log_prob"]
    if kind == "ce":
        names.append("prob")
    else:
        names += ["scored prob", "overlap"]
        kept.append("prob")
    if kind == "dice+focal":
        kept += ["1 - prob", "its square"]
    hot, held = paper.enter(planes), [paper.enter(planes * _FLOAT) for _name in names]
    saved = [hot, *(paper.enter(planes * _FLOAT) for _name in kept)]
    gradients = [(_Entry(0), planes * _FLOAT) for _name in kept]  # on their way to the logits' own
    paper.apply([_Entry(0)], [(logits, logits.size), *gradients], saved)
    paper.drop(*held, *saved)
