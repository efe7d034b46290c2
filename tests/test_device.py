"""Device, precision and what must stand before torch."""

import os
from pathlib import Path

import pytest
import torch

from support.refusal import raises
from ubend.core import device as subject
from ubend.core.device import describe_device, fastest_precision, free_bytes, pick_device, prepare_process
from ubend.core.errors import SettingError


@pytest.mark.parametrize("name", ["nonsense", "", "cuda:99", "cpu:x", "meta"])
def test_no_such_device(name: str) -> None:
    """One line that names it and says what to do."""
    with raises(SettingError, key="device", named=[name, "cpu", "--device"]) as caught:
        pick_device(name)
    assert "\n" not in str(caught.value)


def test_devices_that_are_here() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    expected = "cuda" if torch.cuda.is_available() else ("mps" if torch.backends.mps.is_available() else "cpu")
    assert pick_device(None).type == expected


@pytest.mark.parametrize(
    ("vendor", "flags", "precision", "reason"),
    [
        ("GenuineIntel", "avx512f amx_bf16 avx512_bf16", "bfloat16", "AMX"),
        ("GenuineIntel", "avx512f avx512_bf16", "float32", "slower"),
        ("AuthenticAMD", "avx512f avx512_bf16", "bfloat16", "AVX512-BF16"),
        ("AuthenticAMD", "avx512f", "float32", "no bfloat16"),
        ("GenuineIntel", "avx2", "float32", "no bfloat16"),
        ("GenuineIntel", "avx2 no_avx512_bf16_at_all", "float32", "no bfloat16"),
    ],
)
def test_precision_of_a_processor(
    vendor: str, flags: str, precision: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = f"processor\t: {{}}\nvendor_id\t: {vendor}\nmodel name\t: X (flags: amx_bf16)\nflags\t\t: fpu {flags}\n\n"
    monkeypatch.setattr(subject.Path, "read_text", lambda *_args, **_kwargs: one.format(0) + one.format(1))
    found, why = fastest_precision(torch.device("cpu"))
    assert found == precision
    assert reason in why
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI")  # then torch emulates bfloat16, four times slower
    assert fastest_precision(torch.device("cpu"))[0] == "float32"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    assert fastest_precision(torch.device("cpu"))[0] == ("float32" if "amx" in flags else precision)


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_precision_of_a_gpu(capability: tuple[int, int], precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the compute capability alone, so it can be held without a GPU."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    found, why = fastest_precision(torch.device("cuda"))
    assert found == precision
    assert "GPU" in why


def test_precision_elsewhere() -> None:
    assert fastest_precision(torch.device("meta")) == ("float32", "not measured on this device")


def test_prepare_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets what is not set, and leaves a user's own choice."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    prepare_process(False)
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"
    prepare_process(True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE")
    prepare_process(True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE")  # so that teardown puts the first state back


def test_settle_follows_the_setting() -> None:
    """Determinism is switched on for a run that asks for it, and off again for the next that does not."""
    cpu = torch.device("cpu")
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    try:
        subject.set_up(cpu, True)
        assert torch.are_deterministic_algorithms_enabled()
        subject.set_up(cpu, False)
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def test_descriptions() -> None:
    cpu = torch.device("cpu")
    assert torch.backends.cpu.get_cpu_capability() in describe_device(cpu)
    assert "thread" not in describe_device(cpu)  # said beside it, in the chosen language
    assert free_bytes(cpu) > 2**20
    if torch.cuda.is_available():
        assert describe_device(torch.device("cuda")) == torch.cuda.get_device_name()
        assert free_bytes(torch.device("cuda")) > 2**20


def test_unreadable_processor_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system does not say, the careful answers."""

    def refuse(*_args: object, **_kwargs: object) -> str:
        raise OSError("no /proc")

    monkeypatch.setattr(subject.Path, "read_text", refuse)
    assert not subject.cpu_has("amx_bf16")
    assert subject._read_cpu("vendor_id") == ""
    assert fastest_precision(torch.device("cpu"))[0] == "float32"
    assert free_bytes(torch.device("cpu")) == 4 * 2**30


def test_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not subject.has_compiler()
    (tmp_path / "gcc").write_text("#!/bin/sh\n")
    (tmp_path / "gcc").chmod(0o755)
    assert subject.has_compiler()
