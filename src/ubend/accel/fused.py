"""The U-Net of unet.py in fewer passes over memory: the same function of the same parameters.

Convolutions are torch's; what lies between them is done by kernels on NVIDIA GPUs. Batch norm, ReLU and
max pooling are one pass; the encoder writes its maps straight into the decoder's concatenation, and the head reads
the last map before it is normalised. Backward keeps each convolution's output and what the next convolution was
given, nothing else. So a training step moves about half the bytes (docs/benchmarks.md). The gradients of weights
are computed on a second stream.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ubend.accel.gate import usable
from ubend.models.segmentation_net import check_channels, pad_to_multiple
from ubend.models.unet import UNet


class SecondStream:
    """Runs work beside the current stream of a device; on a CPU at once.

    torch gives memory back as soon as the current stream is done with it, and knows nothing of the other. So
    what the work reads is held here until the current stream has waited for the work.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = _stream_of(device) if device.type == "cuda" else None
        self._running: deque[tuple[torch.cuda.Event, tuple[Tensor, ...]]] = deque()

    def run(self, work: Callable[[], Tensor], *reads: Tensor) -> Tensor:
        """What `work` returns; its content is there after `wait`."""
        if self._stream is None:
            return work()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            made = work()
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()
        self._running.append((done, reads))
        return made

    def wait(self, holding: int = 0) -> None:
        """The current stream waits for all work so far except the last piece, if that holds at most so many bytes."""
        while self._running:
            done, reads = self._running[0]
            if len(self._running) == 1 and sum(tensor.nbytes for tensor in reads) <= holding:
                break
            torch.cuda.current_stream().wait_event(done)
            self._running.popleft()


@cache
def _stream_of(device: torch.device) -> Any:
    """One for each device: memory that was used on one stream is not given to another."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


GradientHook = Callable[[nn.Parameter, Tensor], None]

_HELD_BYTES = 2**27  # of maps, for the sake of the second stream: what lies at full size is not worth its memory


def find_kernels(on_device: Tensor) -> ModuleType | None:
    """`ubend.accel.gpu` where it can run on the device of this tensor; else None, and the plain network runs."""
    if not usable(on_device):
        return None
    from ubend.accel import gpu  # Triton is not everywhere

    return gpu


def can_fuse(net: nn.Module) -> TypeGuard[UNet]:
    """Whether `run` knows this network; of its calls, see `fits_call`."""
    return type(net) is UNet and net.upsampling == "transposed"


def fits_call(net: UNet, image: Tensor) -> bool:
    """Whether `run` knows this call: computed from float32; batch norm's own statistics, or no gradients; batch norm
    in the mode of the network."""
    norm = net.stem[1]
    known = torch.promote_types(image.dtype, net.mean.dtype) == torch.float32 and type(norm) is nn.BatchNorm2d
    return known and norm.training == net.training and (norm.training or not torch.is_grad_enabled())


def run(net: Any, image: Tensor, kernels: Any, on_gradient: GradientHook | None = None) -> Tensor:
    """What `net.forward` computes; while training, the running statistics move as they do there.

    Args:
        net: a `UNet` that `can_fuse` knows.
        image: (N, C, H, W) raw values, any H and W >= 1.
        kernels: from `find_kernels`; tests also give `ubend.accel.reference`.
        on_gradient: see `accelerate_network`.
    Returns:
        (N, classes, H, W) float32.
    Raises:
        ValueError: the image has another shape; training on one value per channel.
    """
    check_channels(image, net.channels)
    height, width = image.shape[-2:]
    features = pad_to_multiple((image - net.mean) / net.std, net.input_multiple)
    convolve = _Convolutions(net, features.device, kernels, on_gradient)
    kept: list[tuple[Tensor, Tensor] | None] = []
    block = net.stem
    y = _run_block(block, channels_last(features), convolve)
    for encoder, skip in zip(net.encoders, net.skips, strict=True):
        # wide enough for what the decoder will lay beside it
        joined = _empty_map(y, 2 * y.shape[1]) if skip else None
        features, skipped = _NormPool.apply(y, block[4].weight, block[4].bias, block[4], joined, kernels)
        kept.append(None if joined is None else (joined, skipped))
        block = encoder.block
        y = _run_block(block, features, convolve)
    for decoder in net.decoders:
        features = NormActivation.apply(y, block[4].weight, block[4].bias, block[4], kernels)
        beside = kept.pop()
        if beside is None:
            features = decoder.up(features)
        else:
            features = _Join.apply(*beside, convolve(decoder.up, features), decoder.up.bias, kernels)
        block = decoder.block
        y = _run_block(block, features, convolve)
    last = (y, block[4].weight, block[4].bias)
    if net.width <= kernels.HEAD_CHANNELS:
        logits: Tensor = _NormHead.apply(*last, net.head.weight, net.head.bias, block[4], kernels)
    else:
        logits = net.head(NormActivation.apply(*last, block[4], kernels)).float()
    if net.training:
        count_batches(net)
    return logits[..., :height, :width]


class _Convolutions:
    """The network's convolutions, without their biases, in autocast's precision."""

    def __init__(self, net: nn.Module, device: torch.device, kernels: Any, on_gradient: GradientHook | None) -> None:
        layers = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
        weights: list[Tensor] = [layer.weight for layer in layers]
        low = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if low else weights[0].dtype
        self.kernels = kernels
        self._execution = _Execution(SecondStream(device), kernels.ALIGNED, on_gradient)
        awaited = _Awaited.apply(self._execution.beside, *weights)
        cast = _cast([weight.detach() for weight in weights], dtype)
        self._weights = dict(zip(layers, zip(awaited, cast, strict=True), strict=True))

    def __call__(self, layer: nn.Conv2d | nn.ConvTranspose2d, features: Tensor) -> Tensor:
        convolved: Tensor = _Convolve.apply(features, *self._weights[layer], layer, self._execution)
        return convolved


@dataclass(frozen=True)
class _Execution:
    """How a network's convolutions go.

    Attributes:
        beside: where the weights' gradients are computed.
        aligned: their input's channels are filled up to a multiple of it.
        on_gradient: see `accelerate_network`.
    """

    beside: SecondStream
    aligned: int
    on_gradient: GradientHook | None


def _cast(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """In one launch, where autocast takes one for each tensor."""
    if all(tensor.dtype == dtype for tensor in tensors):
        return tensors
    cast = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    torch._foreach_copy_(cast, tensors)
    return cast


def _run_block(block: Any, features: Tensor, convolve: _Convolutions) -> Tensor:
    """A ConvBlock up to its second convolution's output, whose normalisation depends on where the map goes."""
    y = convolve(block[0], features)
    return convolve(block[3], NormActivation.apply(y, block[1].weight, block[1].bias, block[1], convolve.kernels))


def _measure(y: Tensor, layer: nn.BatchNorm2d, kernels: Any) -> Tensor:
    """The statistics of a map, as (4, C); where training has nothing to take them of, torch's own error."""
    if layer.training and y.numel() < 2 * y.shape[1]:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {y.shape}")
    stats: Tensor = kernels.measure_statistics(y, layer)
    return stats


def _empty_map(like: Tensor, channels: int) -> Tensor:
    n, _c, height, width = like.shape
    return torch.empty(
        (n, channels, height, width), dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def count_batches(net: nn.Module) -> None:
    """What every batch norm does for itself, in one launch."""
    counters = [layer.num_batches_tracked for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)]
    torch._foreach_add_([counter for counter in counters if counter is not None], 1)


class _Awaited(torch.autograd.Function):
    """Weights as they are; their gradients come from the second stream, and go no further until they are there."""

    @staticmethod
    def forward(ctx: Any, beside: SecondStream, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.beside = beside
        return weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        ctx.beside.wait()
        return None, *gradients


class _Convolve(torch.autograd.Function):
    """A layer's convolution, without its bias; few channels are filled up with zeros."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, awaited: Tensor, cast: Tensor, layer: Any, execution: _Execution) -> Tensor:
        """`awaited` is the layer's weight, from `_Awaited`; `cast` is it in the precision that is computed in."""
        ctx.channels, ctx.weight, ctx.execution = features.shape[1], layer.weight, execution
        transposed = isinstance(layer, nn.ConvTranspose2d)
        missing = 0 if transposed else -ctx.channels % execution.aligned
        features = features.to(cast.dtype)
        if missing:
            features = channels_last(F.pad(features, (0, 0, 0, 0, 0, missing)))
            cast = F.pad(cast, (0, 0, 0, 0, 0, missing))
        ctx.save_for_backward(features, cast)
        ctx.geometry = layer.stride, layer.padding, layer.dilation, transposed, layer.output_padding, layer.groups
        return channels_last(torch.convolution(features, cast, None, *ctx.geometry))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        features, cast = ctx.saved_tensors
        weight, dy = ctx.weight, channels_last(dy)

        def gradients(*needs_grad: bool) -> Any:
            return torch.ops.aten.convolution_backward(dy, features, cast, None, *ctx.geometry, needs_grad)

        def of_weight() -> Tensor:
            gradient = torch.empty_like(weight)
            gradient.copy_(gradients(False, True, False)[1].narrow(1, 0, weight.shape[1]))
            if ctx.execution.on_gradient:
                ctx.execution.on_gradient(weight, gradient)
            return gradient

        dweight = dfeatures = None
        if ctx.needs_input_grad[1]:
            dweight = ctx.execution.beside.run(of_weight, dy, features)
        if ctx.needs_input_grad[0]:
            dfeatures = gradients(True, False, False)[0].narrow(1, 0, ctx.channels)
        ctx.execution.beside.wait(holding=_HELD_BYTES)
        return dfeatures, dweight, None, None, None


class NormActivation(torch.autograd.Function):
    """activation(batch norm(y)), ReLU unless another is given."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        weight: Tensor,
        bias: Tensor,
        layer: nn.BatchNorm2d,
        kernels: Any,
        activation: str = "relu",
    ) -> Tensor:
        ctx.kernels, ctx.activation, stats = kernels, activation, _measure(y, layer, kernels)
        ctx.save_for_backward(y, stats)
        z: Tensor = kernels.apply(y, stats, activation)
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor) -> Any:
        y, stats = ctx.saved_tensors
        dy, (dbias, dweight) = ctx.kernels.differentiate(y, stats, channels_last(dz), None, ctx.activation)
        return dy, dweight, dbias, None, None, None


class _NormPool(torch.autograd.Function):
    """The 2x2 maxima of relu(batch norm(y)), and that itself, written into the first channels of `joined`."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        weight: Tensor,
        bias: Tensor,
        layer: nn.BatchNorm2d,
        joined: Tensor | None,
        kernels: Any,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.kernels, stats = kernels, _measure(y, layer, kernels)
        ctx.save_for_backward(y, stats)
        kept = None if joined is None else _alias(joined[:, : y.shape[1]])
        return kernels.apply_and_pool(y, stats, kept), kept

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dpool: Tensor, dz: Tensor | None) -> Any:
        y, stats = ctx.saved_tensors
        dy, (dbias, dweight) = ctx.kernels.differentiate(y, stats, dz, channels_last(dpool))
        return dy, dweight, dbias, None, None, None


class _Join(torch.autograd.Function):
    """The concatenation (skipped, grown + bias); `skipped` lies in `joined` already."""

    @staticmethod
    def forward(ctx: Any, joined: Tensor, skipped: Tensor, upsampled: Tensor, bias: Tensor, kernels: Any) -> Tensor:
        kernels.add_bias(upsampled, bias, joined[:, skipped.shape[1] :])
        ctx.kernels, ctx.channels = kernels, skipped.shape[1]
        return _alias(joined)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, djoined: Tensor) -> Any:
        djoined = channels_last(djoined)
        dupsampled, dbias = ctx.kernels.copy_and_sum(djoined[:, ctx.channels :])
        return None, djoined[:, : ctx.channels], dupsampled, dbias, None


class _NormHead(torch.autograd.Function):
    """The head's 1x1 convolution of relu(batch norm(y)), float32."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        weight: Tensor,
        bias: Tensor,
        head: Tensor,
        head_bias: Tensor,
        layer: nn.BatchNorm2d,
        kernels: Any,
    ) -> Tensor:
        ctx.kernels, stats = kernels, _measure(y, layer, kernels)
        ctx.save_for_backward(y, stats, head)
        logits: Tensor = kernels.head(y, stats, head, head_bias)
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dlogits: Tensor) -> Any:
        y, stats, head = ctx.saved_tensors
        dy, (dbias, dweight), dhead, dhead_bias = ctx.kernels.differentiate_head(y, stats, head, dlogits)
        return dy, dweight, dbias, dhead, dhead_bias, None, None


def channels_last(map_: Tensor) -> Tensor:
    """The map in channels-last memory order; itself if it is already."""
    return map_.contiguous(memory_format=torch.channels_last)


def _alias(map_: Tensor) -> Tensor:
    """A tensor of the same memory that autograd does not know as a view: halves of it are written one by one."""
    out = torch.empty(0, dtype=map_.dtype, device=map_.device)
    return out.set_(map_.untyped_storage(), map_.storage_offset(), map_.shape, map_.stride())
