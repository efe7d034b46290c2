"""Device, precision, memory, determinism."""

import ctypes
import gc
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from ubend.core.errors import SettingError
from ubend.core.i18n import _
from ubend.portable.errors import is_out_of_memory

if TYPE_CHECKING:
    import torch

    from ubend.core.settings import Precision

_P = ParamSpec("_P")
_T = TypeVar("_T")


def prepare_process(deterministic: bool) -> None:
    """Import torch, after setting what must be set before the import or before CUDA is first used."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Large blocks on huge pages: CPU training is limited by page faults otherwise (docs/benchmarks.md).
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if "torch" not in sys.modules:
        _import_torch()


def _import_torch() -> None:
    """Import torch with garbage collection off: Python would scan torch's objects repeatedly, now and at exit."""
    collects = gc.isenabled()
    gc.disable()
    try:
        import torch  # noqa: F401
    finally:
        gc.freeze()
        if collects:
            gc.enable()


def pick_device(name: str | None) -> "torch.device":
    """The device of this name; None: CUDA if available, else the CPU.

    Apple's MPS is never chosen automatically: it has not been measured with ubend.

    Raises:
        SettingError: the device is not available.
    """
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # also fails for `meta`, which stores nothing
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = _explain_unusable(name, error)
        raise SettingError(
            _("device {name} cannot be used: {reason}; choose another, such as cpu, or leave --device out").format(
                name=name, reason=reason
            ),
            key="device",
        ) from error
    return device


def _explain_unusable(name: str, error: Exception) -> str:
    import torch

    kind = name.split(":")[0]
    if kind not in ("cuda", "mps", "cpu"):
        return _("unknown device type")
    if kind == "cuda" and not torch.cuda.is_available():
        return _("torch finds no NVIDIA GPU on this computer")
    return str(error).splitlines()[0]


def describe_device(device: "torch.device") -> str:
    """The device for the run folder, not translated: `NVIDIA H100 80GB HBM3`, `x86_64 CPU, AVX512 + AMX`."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        capability = torch.backends.cpu.get_cpu_capability()
        features = " + AMX" if cpu_has("amx_bf16") else ""
        return f"{platform.machine()} CPU, {capability}{features}"
    return device.type


def cpu_has(feature: str) -> bool:
    """Whether the processor has this feature (Linux; False elsewhere)."""
    return feature in _read_cpu("flags").split()


def _read_cpu(fact: str) -> str:
    """The first processor's entry of this name in /proc/cpuinfo; "" if missing."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    facts = (line.partition(":") for line in lines)
    return next((value.strip() for name, _colon, value in facts if name.strip() == fact), "")


# Values of ONEDNN_MAX_CPU_ISA (oneDNN, "CPU Dispatcher Control").
_WITHOUT_BFLOAT16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")
_WITHOUT_AMX = ("AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10_1_512")


def fastest_precision(device: "torch.device") -> tuple["Precision", str]:
    """The faster precision of the device, bfloat16 or float32, and the reason."""
    import torch

    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= (8, 0):
            return "bfloat16", _("the GPU has bfloat16 matrix units")
        return "float32", _("the GPU has no bfloat16 matrix units")
    if device.type == "cpu":
        limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()  # below it, oneDNN emulates bfloat16
        if limit in _WITHOUT_BFLOAT16:
            return "float32", _("ONEDNN_MAX_CPU_ISA excludes bfloat16")
        if cpu_has("amx_bf16") and limit not in _WITHOUT_AMX:
            return "bfloat16", _("the processor has {name}").format(name="AMX")
        if not cpu_has("avx512_bf16"):
            return "float32", _("the processor has no bfloat16 instructions")
        if _read_cpu("vendor_id") == "AuthenticAMD":
            return "bfloat16", _("the processor has {name}").format(name="AVX512-BF16")
        return "float32", _("the processor's bfloat16 instructions are slower")  # Intel's; measured: docs/benchmarks.md
    return "float32", _("not measured on this device")


def has_compiler() -> bool:
    """Whether a C compiler is available; without one `torch.compile` fails at the first step."""
    return any(shutil.which(name) for name in (os.environ.get("CC") or "cc", "gcc", "clang", "cl"))


def set_up(device: "torch.device", deterministic: bool) -> None:
    """Configure torch for a run on this device."""
    import torch

    if torch.are_deterministic_algorithms_enabled() != deterministic:  # the call itself imports for a second
        torch.use_deterministic_algorithms(deterministic)
    if deterministic:
        torch.backends.cudnn.benchmark = False  # torch's default; the algorithm search is not deterministic
    elif device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True  # convolutions already use TF32 by torch's default
    if device.type == "cpu" and sys.platform == "linux":
        _keep_freed_memory()


def free_bytes(device: "torch.device") -> int:
    """Free memory of the device, bytes."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 4 * 2**30  # assumed if the system does not report it


def send(tensor: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """Copy a tensor from main memory to a device, without waiting for the device."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def attempt(work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T | None:
    """The result of `work(...)`; None if it ran out of memory, with everything it allocated freed."""
    import torch

    try:
        return work(*args, **kwargs)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # The error, its frames and their tensors are freed only here, after the handler.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


@contextmanager
def explain_out_of_memory(sentence: str) -> Iterator[None]:
    """A context that turns out-of-memory errors into a SettingError with this sentence."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise SettingError(sentence, key="device") from error


def _keep_freed_memory() -> None:
    """Ask glibc to keep freed blocks: the tensors of each step then cause no new page faults.

    Measured: 69 -> 86 img/s of bfloat16 training on two cores with AMX.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        mmap_max, trim_threshold, top_pad = -4, -1, -2  # glibc's malloc.h
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(top_pad, 64 * 2**20)
    except (OSError, AttributeError):
        pass  # another C library; only speed is lost
