"""What `ubend export` writes: which precisions go with which kind of file. Imported without torch, for the help."""

from typing import Literal, get_args

from ubend.core.errors import SettingError
from ubend.core.i18n import _

Target = Literal["onnx", "openvino", "web"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
# Of each target, from the most exact to the fastest.
PRECISIONS: dict[Target, tuple[Precision, ...]] = {
    "onnx": ("fp32", "fp16", "int8"),
    "openvino": ("fp32", "bf16", "int8"),
    "web": ("fp32", "fp16"),
}
TARGETS: tuple[Target, ...] = get_args(Target)
PRECISION_NAMES: tuple[Precision, ...] = get_args(Precision)


def check_precision(target: Target, precision: Precision) -> None:
    """Fail if a target has no such precision.

    Raises:
        SettingError: it has not, or there is no such target.
    """
    if target not in PRECISIONS:
        line = _("--to {target}: there is {known}")
        raise SettingError(line.format(target=target, known=", ".join(TARGETS)), key="--to")
    if precision not in PRECISIONS[target]:
        line = _("--precision {precision}: {target} can have {known}")
        known = ", ".join(PRECISIONS[target])
        raise SettingError(line.format(precision=precision, target=target, known=known), key="--precision")
