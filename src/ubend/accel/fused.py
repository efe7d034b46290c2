"""The U-Net of unet.py with fewer passes over memory: the same function of the same parameters.

Convolutions are torch's; the operations between them are kernels on NVIDIA GPUs. Batch norm, ReLU and max pooling are
one pass; the encoder writes its feature maps directly to the decoder's concatenation, and the head includes the last
batch norm and ReLU. Only the input and output of each convolution are saved for the backward pass. So a training step
moves about half the bytes (docs/benchmarks.md). The gradients of weights are computed on a second stream.
"""

from collections import deque
from collections.abc import Callable, Sequence
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
    """Runs work in parallel to the current stream of a device; on a CPU, immediately.

    torch reuses memory as soon as the current stream has finished with it, without regard to other streams. So the
    tensors that the work reads are kept here until the current stream has waited for the work.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = _stream_of(device) if device.type == "cuda" else None
        self._running: deque[tuple[torch.cuda.Event, tuple[Tensor, ...]]] = deque()

    def run(self, work: Callable[[], Tensor], *reads: Tensor) -> Tensor:
        """Start `work`; returns its result, whose content is valid after `wait`."""
        if self._stream is None:
            return work()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            made = work()
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()
        self._running.append((done, reads))
        return made

    def wait(self, max_input_bytes: int = 0) -> None:
        """Let the current stream wait for all work, except for the last if its inputs are not larger than this."""
        while self._running:
            done, reads = self._running[0]
            if len(self._running) == 1 and sum(tensor.nbytes for tensor in reads) <= max_input_bytes:
                break
            torch.cuda.current_stream().wait_event(done)
            self._running.popleft()


@cache
def _stream_of(device: torch.device) -> Any:
    """The second stream of a device, always the same, since torch does not reuse one stream's memory for another."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


GradientHook = Callable[[nn.Parameter, Tensor], None]

_HELD_BYTES = 2**27  # limit of feature maps kept for the second stream: larger ones are not worth the memory


def find_kernels(on_device: Tensor) -> ModuleType | None:
    """`ubend.accel.gpu` if it can run on the device of this tensor; otherwise None, and the plain network runs."""
    if not usable(on_device):
        return None
    from ubend.accel import gpu  # imported late: it needs Triton

    return gpu


def can_fuse(net: nn.Module) -> TypeGuard[UNet]:
    """Whether `run` supports this network; see also `fits_call`."""
    return type(net) is UNet and net.upsampling == "transposed"


def fits_call(net: UNet, image: Tensor) -> bool:
    """Whether `run` supports this call.

    It needs float32 input and torch's batch norm in the same mode as the network (the first one stands for all); in
    evaluation mode, it computes no gradients.
    """
    norm = net.stem[1]
    known = torch.promote_types(image.dtype, net.mean.dtype) == torch.float32 and type(norm) is nn.BatchNorm2d
    return known and norm.training == net.training and (norm.training or not torch.is_grad_enabled())


def run(net: Any, image: Tensor, kernels: Any, on_gradient: GradientHook | None = None) -> Tensor:
    """Compute `net.forward`; in training, the running statistics are updated in the same way.

    Args:
        net: a `UNet` for which `can_fuse` is True.
        image: (N, C, H, W) raw values, any H and W >= 1.
        kernels: from `find_kernels`, or, in tests, `ubend.accel.reference`.
        on_gradient: see `accelerate_network`.
    Returns:
        (N, classes, H, W) float32.
    Raises:
        ValueError: the image has the wrong shape; or training with one value per channel.
    """
    check_channels(image, net.channels)
    height, width = image.shape[-2:]
    features = pad_to_multiple((image - net.mean) / net.std, net.input_multiple)
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    convolve = Convolutions(layers, features.device, on_gradient, channel_multiple=kernels.ALIGNED)
    kept: list[tuple[Tensor, Tensor] | None] = []
    block = net.stem
    y = _run_block(block, channels_last(features), convolve, kernels)
    for encoder, skip in zip(net.encoders, net.skips, strict=True):
        # with room for the decoder's upsampled channels
        concatenated = empty_map(y, 2 * y.shape[1]) if skip else None
        features, skip_features = _NormPool.apply(y, block[4].weight, block[4].bias, block[4], concatenated, kernels)
        kept.append(None if concatenated is None else (concatenated, skip_features))
        block = encoder.block
        y = _run_block(block, features, convolve, kernels)
    for decoder in net.decoders:
        features = NormActivation.apply(y, block[4].weight, block[4].bias, block[4], kernels)
        saved = kept.pop()
        if saved is None:
            features = decoder.up(features)
        else:
            features = Concatenate.apply(*saved, convolve(decoder.up, features), decoder.up.bias, kernels)
        block = decoder.block
        y = _run_block(block, features, convolve, kernels)
    logits = run_head(y, block[4], net.head, kernels)
    if net.training:
        count_batches(net)
    return logits[..., :height, :width]


class Convolutions:
    """Convolutions without their biases, in the precision of autocast, for one pass through a network.

    All weights are cast with one kernel, and their gradients are computed on a second stream.

    Args:
        layers: that can be called.
        on_gradient: see `accelerate_network`.
        channel_multiple: input channels are padded with zeros to a multiple of it.
    """

    def __init__(
        self,
        layers: Sequence[nn.Conv2d | nn.ConvTranspose2d],
        device: torch.device,
        on_gradient: GradientHook | None = None,
        *,
        channel_multiple: int = 1,
    ) -> None:
        weights: list[Tensor] = [layer.weight for layer in layers]
        self._execution = _Execution(SecondStream(device), channel_multiple, on_gradient)
        returned = _AwaitGradients.apply(self._execution.second_stream, *weights) if weights else ()
        cast = [weight.detach() for weight in weights]
        if torch.is_autocast_enabled(device.type):
            cast = _cast(cast, torch.get_autocast_dtype(device.type))
        self._weights = dict(zip(layers, zip(returned, cast, strict=True), strict=True))

    def __call__(
        self, layer: nn.Conv2d | nn.ConvTranspose2d, features: Tensor, padding: tuple[int, ...] | None = None
    ) -> Tensor:
        """The layer's convolution, with `padding` in place of the layer's own, if given."""
        padding = layer.padding if padding is None else padding  # type: ignore[assignment]
        convolved: Tensor = _Convolve.apply(features, *self._weights[layer], layer, padding, self._execution)
        return convolved


@dataclass(frozen=True)
class _Execution:
    """How a network's convolutions are computed.

    Attributes:
        second_stream: computes the gradients of the weights.
        channel_multiple: input channels are padded to a multiple of it.
        on_gradient: see `accelerate_network`.
    """

    second_stream: SecondStream
    channel_multiple: int
    on_gradient: GradientHook | None


def _cast(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Cast all tensors with one kernel; autocast would use one per tensor."""
    cast = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    torch._foreach_copy_(cast, tensors)
    return cast


def _run_block(block: Any, features: Tensor, convolve: Convolutions, kernels: Any) -> Tensor:
    """A ConvBlock up to the output of its second convolution; its batch norm is fused with the operation after it."""
    y = convolve(block[0], features)
    return convolve(block[3], NormActivation.apply(y, block[1].weight, block[1].bias, block[1], kernels))


def run_head(y: Tensor, norm: Any, head: Any, kernels: Any) -> Tensor:
    """Batch norm, ReLU and the 1x1 convolution `head`: (N, C, H, W) -> (N, classes, H, W) float32 logits."""
    if y.shape[1] <= kernels.HEAD_CHANNELS:
        logits: Tensor = _NormHead.apply(y, norm.weight, norm.bias, head.weight, head.bias, norm, kernels)
        return logits
    return head(NormActivation.apply(y, norm.weight, norm.bias, norm, kernels)).float()  # type: ignore[no-any-return]


def _measure(y: Tensor, layer: nn.BatchNorm2d, kernels: Any) -> Tensor:
    """(4, C) mean, 1 / deviation, scale, shift of a feature map.

    Raises:
        ValueError: one value per channel in training; torch's error.
    """
    if layer.training and y.numel() < 2 * y.shape[1]:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {y.shape}")
    stats: Tensor = kernels.measure_statistics(y, layer)
    return stats


def empty_map(like: Tensor, channels: int) -> Tensor:
    """An uninitialised (N, channels, H, W) channels-last tensor, with the other sizes and the dtype of `like`."""
    n, _c, height, width = like.shape
    return torch.empty(
        (n, channels, height, width), dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def count_batches(net: nn.Module) -> None:
    """Update the batch counters of all batch norms with one kernel."""
    counters = [layer.num_batches_tracked for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)]
    torch._foreach_add_([counter for counter in counters if counter is not None], 1)


class _AwaitGradients(torch.autograd.Function):
    """Identity for weights; in the backward pass, waits until the second stream has computed their gradients."""

    @staticmethod
    def forward(ctx: Any, second_stream: SecondStream, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.second_stream = second_stream
        ctx.set_materialize_grads(False)  # of layers that were not called
        return weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        ctx.second_stream.wait()
        return None, *gradients


class _Convolve(torch.autograd.Function):
    """A layer's convolution without its bias; channels are padded with zeros to a multiple of `channel_multiple`."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, cast: Tensor, layer: Any, padding: Any, execution: _Execution
    ) -> Tensor:
        """`weight` is the layer's, returned by `_AwaitGradients`; `cast` is the same in the computation dtype."""
        ctx.channels, ctx.weight, ctx.execution = features.shape[1], layer.weight, execution
        transposed = isinstance(layer, nn.ConvTranspose2d)
        missing = 0 if transposed else -ctx.channels % execution.channel_multiple
        features = features.to(cast.dtype)
        if missing:
            features = channels_last(F.pad(features, (0, 0, 0, 0, 0, missing)))
            cast = F.pad(cast, (0, 0, 0, 0, 0, missing))
        ctx.save_for_backward(features, cast)
        ctx.geometry = layer.stride, padding, layer.dilation, transposed, layer.output_padding, layer.groups
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
            dweight = ctx.execution.second_stream.run(of_weight, dy, features)
        if ctx.needs_input_grad[0]:
            dfeatures = gradients(True, False, False)[0].narrow(1, 0, ctx.channels)
        ctx.execution.second_stream.wait(max_input_bytes=_HELD_BYTES)
        return dfeatures, dweight, None, None, None, None


class NormActivation(torch.autograd.Function):
    """activation(batch norm(y)), by default ReLU."""

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
        dz = dz if _is_matrix(dz) else channels_last(dz)
        dy, (dbias, dweight) = ctx.kernels.differentiate(y, stats, dz, None, ctx.activation)
        return dy, dweight, dbias, None, None, None


class _NormPool(torch.autograd.Function):
    """2x2 max pooling of z = relu(batch norm(y)); z is also written to the first channels of `concatenated`."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        weight: Tensor,
        bias: Tensor,
        layer: nn.BatchNorm2d,
        concatenated: Tensor | None,
        kernels: Any,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.kernels, stats = kernels, _measure(y, layer, kernels)
        ctx.save_for_backward(y, stats)
        kept = None if concatenated is None else _alias(concatenated[:, : y.shape[1]])
        return kernels.apply_and_pool(y, stats, kept), kept

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dpool: Tensor, dz: Tensor | None) -> Any:
        y, stats = ctx.saved_tensors
        dy, (dbias, dweight) = ctx.kernels.differentiate(y, stats, dz, channels_last(dpool))
        return dy, dweight, dbias, None, None, None


class Concatenate(torch.autograd.Function):
    """The concatenation (skip_features, upsampled + bias); `concatenated` already contains `skip_features`."""

    @staticmethod
    def forward(
        ctx: Any, concatenated: Tensor, skip_features: Tensor, upsampled: Tensor, bias: Tensor, kernels: Any
    ) -> Tensor:
        kernels.add_bias(upsampled, bias, concatenated[:, skip_features.shape[1] :])
        ctx.kernels, ctx.channels = kernels, skip_features.shape[1]
        return _alias(concatenated)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dconcatenated: Tensor) -> Any:
        dconcatenated = channels_last(dconcatenated)
        dupsampled, dbias = ctx.kernels.copy_and_sum(dconcatenated[:, ctx.channels :])
        return None, dconcatenated[:, : ctx.channels], dupsampled, dbias, None


class _NormHead(torch.autograd.Function):
    """The head: a 1x1 convolution of relu(batch norm(y)), in float32."""

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
    """The feature map in channels-last memory order; unchanged if it is in this order already."""
    return map_.contiguous(memory_format=torch.channels_last)


def _is_matrix(map_: Tensor) -> bool:
    """Whether the kernels can read the feature map: channels last, or adjacent channels of a wider one."""
    _n, _c, height, width = map_.shape
    batch_stride, channel_stride, row_stride, stride = map_.stride()
    return channel_stride == 1 and row_stride == width * stride and batch_stride == height * row_stride


def _alias(map_: Tensor) -> Tensor:
    """A tensor of the same memory that autograd does not treat as a view, since its halves are written separately."""
    out = torch.empty(0, dtype=map_.dtype, device=map_.device)
    return out.set_(map_.untyped_storage(), map_.storage_offset(), map_.shape, map_.stride())
