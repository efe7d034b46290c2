"""What `accel` wraps is what it was given: same arguments, same results, same gradients.

On a GPU the fast path runs. On a CPU nothing of it does, so that results are equal to the bit; there the fused network
runs on `reference.py`. Kernels alone: test_kernels.py; shapes of the U-Net: test_fused.py, test_folded.py.
"""

import copy
from collections import Counter
from contextlib import nullcontext
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from ubend.accel import fused, reference
from ubend.accel.accelerate import accelerate_inference, accelerate_loss, accelerate_network
from ubend.accel.folded import FoldedUNet
from ubend.core.settings import LossKind, ModelSettings
from ubend.models.networks import NETWORKS, Network, make_network, shape_from_settings
from ubend.training.losses import Loss

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# settings of [model] by name of the variant, which begins with the name in NETWORKS
VARIANTS: dict[str, dict[str, Any]] = {
    "unet": {"depth": 2, "skips": (True, False)},
    "unet/bilinear": {"depth": 1, "upsampling": "bilinear"},
    "unet/unpool": {"depth": 1, "upsampling": "unpool"},
    "paper": {"kind": "paper", "depth": 1, "dropout": 0.0},
    "encoder": {"encoder": "test_resnet", "depth": 2},
    "encoder/bilinear": {"encoder": "test_resnet", "depth": 2, "upsampling": "bilinear"},
    "encoder/lite": {"encoder": "tf_efficientnet_lite0", "depth": 2},
}
MODES = ["training", "evaluation", "evaluation with gradients"]


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(params=VARIANTS)
def net(request: pytest.FixtureRequest) -> Network:
    if request.param in ("encoder", "encoder/bilinear"):  # of timm
        pytest.importorskip("timm")
    torch.manual_seed(0)
    shape = shape_from_settings(ModelSettings(**VARIANTS[request.param]), 2, 3, 4)
    made = make_network(shape, mean=[120.0, 90.0], std=[60.0, 70.0])
    for parameter in made.parameters():  # timm begins residual branches, and scales of them, at 0
        parameter.data += 0.05 * torch.randn_like(parameter)
    return made.to(DEVICE)


@pytest.fixture
def with_reference(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The fused network runs on `reference.py`; the shapes of the images that it was given."""
    seen: list[str] = []

    def find(image: Tensor) -> Any:
        seen.append(str(tuple(image.shape)))
        return reference

    monkeypatch.setattr(fused, "find_kernels", find)
    return seen


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    """Sides that no network divides evenly."""
    values = torch.randint(0, 256, (2, 2, 21, 13), generator=torch.Generator().manual_seed(1))
    return values.to(DEVICE, dtype)


def run(net: Network, forward: Any, mode: str, image: Tensor) -> dict[str, Tensor]:
    """Logits, gradients and buffers after a pass."""
    net.train(mode == "training")
    net.zero_grad(set_to_none=True)
    with torch.inference_mode() if mode == "evaluation" else nullcontext():
        logits = forward(image)
    found = {"logits": logits.detach()}
    if mode != "evaluation":
        logits.square().mean().backward()
        found |= {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return found | {name: buffer.clone() for name, buffer in net.named_buffers()}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], slack: float) -> None:
    """Slack 0: to the bit; else of the greatest value of a tensor, and of all of them."""
    assert found.keys() == wanted.keys()
    most = max(float(tensor.abs().max()) for tensor in wanted.values())
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        atol = slack * (float(tensor.abs().max()) + 1e-2 * most)
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=atol, msg=name)


def test_every_network_is_tested() -> None:
    assert {name.split("/")[0] for name in VARIANTS} == set(NETWORKS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
@pytest.mark.parametrize("mode", MODES)
def test_network(net: Network, mode: str, dtype: torch.dtype) -> None:
    plain = copy.deepcopy(net)
    found = run(net, accelerate_network(net), mode, images(dtype))
    assert_same(found, run(plain, plain, mode, images(dtype)), 0 if DEVICE.type == "cpu" else 5e-3)


@pytest.mark.parametrize("mode", MODES)
def test_network_on_the_reference(net: Network, mode: str, with_reference: list[str]) -> None:
    """Whichever network it is: of the U-Net all is fused, of others what follows batch norm, in training only."""
    plain = copy.deepcopy(net)
    seen: list[nn.Parameter] = []
    forward = accelerate_network(net, lambda weight, _gradient: seen.append(weight))
    found = run(net, forward, mode, images())
    assert_same(found, run(plain, plain, mode, images()), 2e-4 if DEVICE.type == "cpu" else 5e-3)
    is_fused, normalised = fused.can_fuse(net), any(isinstance(layer, nn.BatchNorm2d) for layer in net.modules())
    assert (forward is net) is not normalised
    assert bool(with_reference) is normalised
    assert bool(seen) is (is_fused and mode == "training")  # batch norm's kept statistics have no fused gradient


@pytest.mark.usefixtures("with_reference")
def test_the_head_of_an_encoders_network_includes_its_batch_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """And all convolutions without a bias are computed by the fast path."""
    counts = Counter[str]()

    def count(name: str, function: Any) -> Any:
        return lambda *given: (counts.update([name]), function(*given))[1]

    monkeypatch.setattr(reference, "head", count("head", reference.head))
    monkeypatch.setattr(fused._Convolve, "apply", count("convolutions", fused._Convolve.apply))
    net = make_network(shape_from_settings(ModelSettings(**VARIANTS["encoder/lite"]), 2, 3, 4)).to(DEVICE)
    accelerate_network(net.train())(images()).sum().backward()
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d) and layer.bias is None]
    assert counts == {"head": 1, "convolutions": len(layers) + 2}  # and two transposed ones


@pytest.mark.parametrize("case", ["float64", "another norm"])
def test_what_the_fused_network_does_not_know_runs_plain(case: str, with_reference: list[str]) -> None:
    """Seen in each call: a network may be changed after it was wrapped."""
    torch.manual_seed(0)
    net = make_network(shape_from_settings(ModelSettings(depth=1), 2, 3, 4)).to(DEVICE)
    forward = accelerate_network(net)
    image = images()
    if case == "float64":
        image = image.double()
        net.double()
    else:
        net.stem[1] = nn.GroupNorm(2, 4, device=DEVICE)  # type: ignore[index, operator]
    plain = copy.deepcopy(net)
    slack = 0 if DEVICE.type == "cpu" else 1e-9  # a GPU sums in any order
    assert_same(run(net, forward, "training", image), run(plain, plain, "training", image), slack)
    assert with_reference


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (1, 3, 8, 8), (2, 8, 8)])
@pytest.mark.usefixtures("with_reference")
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    """As the network itself does it."""
    net = make_network(shape_from_settings(ModelSettings(depth=1), 2, 3, 4)).to(DEVICE)
    with pytest.raises(ValueError, match=r"takes \(N, 2, H, W\), got"):
        accelerate_network(net)(torch.zeros(shape, device=DEVICE))


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_inference(net: Network, dtype: torch.dtype) -> None:
    """Folded where it can be, which rounds otherwise; else the plain callable itself."""
    net.eval()

    def plain(image: Tensor) -> Tensor:
        logits: Tensor = net(image.float())
        return logits

    infer = accelerate_inference(plain, net, torch.float32)
    assert infer is plain or isinstance(infer, FoldedUNet)
    with torch.inference_mode():
        found, wanted = infer(images(dtype)), plain(images(dtype))
    slack = 1e-4 if DEVICE.type == "cpu" else 5e-3
    torch.testing.assert_close(found, wanted, rtol=slack, atol=slack * float(wanted.abs().max()))


@pytest.mark.parametrize("classes", [3, 40])  # more than the kernel holds
@pytest.mark.parametrize("weighs_pixels", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", get_args(LossKind))
def test_loss(kind: LossKind, weighted: bool, weighs_pixels: bool, classes: int) -> None:
    """Counts, sums, mean, what a step makes small, and the gradient of that."""
    generator = torch.Generator().manual_seed(classes)
    logits = (3 * torch.randn(2, classes, 9, 13, generator=generator)).to(DEVICE)
    target = torch.randint(0, classes, (2, 9, 13), generator=generator).to(DEVICE, torch.uint8)
    target[:, :2] = 255
    weights = torch.rand(classes, generator=generator).to(DEVICE) if weighted else None
    more = torch.rand(2, 9, 13, generator=generator).to(DEVICE) if weighs_pixels else None
    plain = Loss(kind, weights)

    def compute(loss: Loss) -> dict[str, Tensor]:
        given = logits.clone().requires_grad_()
        sums, counts = loss.sum(given, target, more), loss.count(target, classes, more)
        loss.of_step(sums, counts).backward()  # type: ignore[no-untyped-call]
        assert given.grad is not None
        found = {"mean": loss.mean(sums, counts), **sums._asdict(), "gradient": given.grad}
        return {name: tensor.detach() for name, tensor in found.items()} | {"pixels": counts.pixels}

    fast = accelerate_loss(plain)
    assert (fast.kind, fast.class_weights) == (kind, weights)
    assert_same(compute(fast), compute(plain), 0 if DEVICE.type == "cpu" else 1e-4)


def test_a_loss_without_a_kernel_stays() -> None:
    """Also one of a kind that is not known here: the kernel would compute another loss, without a word."""
    new: Any = "tversky+ce"
    for kind in ("dice+focal", new):
        plain = Loss(kind, None)
        assert accelerate_loss(plain) is plain
