"""A model's graph in each precision, and the order in which they are tried until one predicts what the model does."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from ubend.core.errors import SettingError
from ubend.core.i18n import _
from ubend.exporting.calibration import collect_inputs, copy_model, measure_ranges, rank_layers
from ubend.exporting.graph import round_to_bfloat16, store_weights
from ubend.exporting.proof import ProofImage
from ubend.exporting.quantise import Layer, find_layers, quantise
from ubend.exporting.targets import PRECISIONS, Precision, Target
from ubend.exporting.upsampling import replace_transposed
from ubend.models.exported import import_package
from ubend.portable.openvino_session import has_bfloat16, import_openvino

_PLAIN_SHARES = (0.0, 0.25, 0.5)  # of the layers, those that 8 bits change most, that stay in float32


class Attempt(NamedTuple):
    """A precision; of `int8`, also the share of the layers that stay in float32."""

    precision: Precision
    plain_share: float = 0.0

    def describe(self) -> str:
        """Its name in messages."""
        if self.plain_share:
            return _("int8 with {share:.0%} of the layers in float32").format(share=self.plain_share)
        return self.precision


def list_attempts(target: Target, precision: Precision) -> Iterator[Attempt]:
    """The precision asked for, then each that is more exact."""
    known = PRECISIONS[target]
    for name in reversed(known[: known.index(precision) + 1]):
        for share in _PLAIN_SHARES if name == "int8" else (0.0,):
            yield Attempt(name, share)


class Made(NamedTuple):
    """A graph in some precision.

    Attributes:
        model: the `onnx.ModelProto` of the file.
        compared: the graph that is compared on onnxruntime instead, if this processor does not support the precision;
            None: `model` itself.
        layers: how many convolutions are in which precision; None: all alike.
    """

    model: Any
    compared: Any | None = None
    layers: dict[str, int] | None = None


class PrecisionMaker:
    """Makes the graphs of one model.

    Args:
        model: its `onnx.ModelProto` in float32.
        target: of the file.
        to_file: the bytes of a file with such a graph, for calibration.
        read_training_images: called when 8 bits need them.
    """

    def __init__(
        self,
        model: Any,
        target: Target,
        to_file: Callable[[Any], bytes],
        read_training_images: Callable[[], Sequence[ProofImage]],
    ) -> None:
        self._model, self._target, self._to_file = model, target, to_file
        self._read_training_images = read_training_images

    def make(self, attempt: Attempt) -> Made:
        """The graph in a precision.

        Raises:
            SettingError: 8 bits, and there is nothing to calibrate them on.
        """
        if attempt.precision == "int8":
            return self._make_int8(attempt.plain_share)
        model = copy_model(self._model)
        if attempt.precision in ("fp16", "bf16"):
            store_weights(model, attempt.precision)
        rounded = None
        if attempt.precision == "bf16" and not has_bfloat16(import_openvino(import_package)):
            rounded = copy_model(model)
            round_to_bfloat16(rounded.graph)
        return Made(model, rounded)

    def _make_int8(self, plain_share: float) -> Made:
        base, layers, inputs, ranges = self._calibrated
        model, chosen = copy_model(base), layers
        if plain_share:
            ranked = rank_layers(base, layers, ranges, inputs)
            chosen = [layer for group in ranked[round(plain_share * len(ranked)) :] for layer in group]
        quantise(model.graph, chosen, ranges)
        convolutions = sum(node.op_type in ("Conv", "ConvTranspose") for node in base.graph.node)
        return Made(model, layers={"int8": len(chosen), "float32": convolutions - len(chosen)})

    @cached_property
    def _calibrated(self) -> tuple[Any, list[Layer], list[Any], Any]:
        base = copy_model(self._model)
        replace_transposed(base.graph)
        layers = find_layers(base.graph)
        if not layers:
            line = _("--precision int8: the network has no convolutions between its first and its last ones")
            raise SettingError(line, key="--precision")
        inputs = collect_inputs(self._to_file(base), self._read_training_images())
        return base, layers, inputs, measure_ranges(base, layers, inputs)
