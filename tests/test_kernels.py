"""The kernels of loss and augmentation compute what their plain counterparts do.

On a GPU as they are, elsewhere in Triton's interpreter. Those of the network: test_fused.py.
"""

from typing import Any

import numpy as np
import pytest
import torch

CUDA = torch.cuda.is_available()  # else conftest.py has chosen the interpreter
pytest.importorskip("triton", reason="Triton is not installed: the plain code runs, there is nothing to compare")

from ubend.config import AugmentSettings
from ubend.data import augment
from ubend.kernels import augment as kernels
from ubend.kernels.loss import SumLosses
from ubend.training.losses import Loss

DEVICE = torch.device("cuda" if CUDA else "cpu")


@pytest.mark.parametrize("shape", [(2, 3, 9, 13), (1, 2, 40, 40), (3, 5, 4, 4), (1, 20, 16, 16)])
@pytest.mark.parametrize("kind", ["ce", "dice+ce"])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss(shape: tuple[int, int, int, int], kind: Any, weighted: bool) -> None:
    """Sums and gradients, with ignored pixels and a class that is missing from a picture."""
    generator = torch.Generator().manual_seed(sum(shape))
    n, classes, height, width = shape
    target = torch.randint(0, classes, (n, height, width), generator=generator).to(torch.uint8)
    target[torch.rand(target.shape, generator=generator) < 0.2] = 255
    target[0][target[0] == 1] = 0
    weights = torch.rand(classes, generator=generator) if weighted else torch.ones(classes)
    logits = 3 * torch.randn(shape, generator=generator)
    plain, fast = (logits.clone().requires_grad_() for _ in range(2))
    loss = Loss(kind, weights if weighted else None)
    wanted = loss.sum(plain, target)
    (0.3 * wanted.cross_entropy + 0.7 * wanted.dice).backward()  # type: ignore[no-untyped-call]
    on = [tensor.to(DEVICE) for tensor in (fast, target, weights)]
    found = SumLosses.apply(*on, kind == "dice+ce")
    (0.3 * found[0] + 0.7 * found[1]).backward()
    torch.testing.assert_close(torch.stack(found).cpu(), torch.stack(wanted), rtol=1e-5, atol=1e-4)
    assert fast.grad is not None
    torch.testing.assert_close(fast.grad, plain.grad, rtol=1e-4, atol=1e-6)


def test_loss_of_nothing() -> None:
    """No scored pixel: no loss, no gradient."""
    logits = torch.randn(2, 3, 4, 4, device=DEVICE, requires_grad=True)
    target = torch.full((2, 4, 4), 255, dtype=torch.uint8, device=DEVICE)
    entropy, dice = SumLosses.apply(logits, target, torch.ones(3, device=DEVICE), True)
    (entropy + dice).backward()
    assert entropy.detach().item() == dice.detach().item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_augmentation(channels: int, ignore: bool, dtype: torch.dtype) -> None:
    """Warp and colours of pictures of several sizes, within a hundredth of a grey level; masks the same."""
    shapes = np.array([[30, 41], [20, 41], [30, 25], [11, 13], [30, 41]])
    items, window = np.array([3, 0, 2, 3]), (24, 32)
    generator = torch.Generator().manual_seed(channels)
    images = torch.randint(0, 256, (5, 30, 41, channels), generator=generator).to(dtype)
    masks = torch.randint(0, 3, (5, 30, 41), dtype=torch.uint8, generator=generator)
    settings = AugmentSettings(
        kind="warp", orientation="free", rotation_deg=180.0, blur_share=0.6, noise_share=0.6, elastic_share=0.8
    )
    draws = augment.draw_warps(settings, 7, np.arange(4) + 11, shapes[items], window, channels)
    assert 0 < np.count_nonzero(draws.blur_px) < len(items)
    numbers = torch.from_numpy(np.concatenate([draws.pack(), shapes[items].astype(np.float32)], axis=1))
    unpacked = augment.DeviceDraws.unpack(numbers[:, :-2], channels)
    low, high = torch.full((1, channels, 1, 1), 10.0), torch.full((1, channels, 1, 1), 240.0)
    noise = torch.from_numpy(augment.noise_field(0, channels))
    chosen = images[items].permute(0, 3, 1, 2), masks[items]
    warped, target = augment.warp(*chosen, numbers[:, -2:], unpacked, window, ignore)
    colored = augment.change_colors(warped, unpacked, low, high, noise)

    on = [t.to(DEVICE) for t in (images, masks, torch.from_numpy(items).int(), numbers)]
    basis = augment.elastic_basis(window[0], DEVICE), augment.elastic_basis(window[1], DEVICE)
    reach = low.to(DEVICE), high.to(DEVICE)
    raw, index = kernels.warp(*on, basis, reach, colors=False, ignore_outside=ignore)
    shares, same = kernels.warp(*on, basis, reach, colors=True, ignore_outside=ignore)
    found = kernels.blur_and_noise(shares, on[3], noise.to(DEVICE), reach)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(raw.cpu(), warped, rtol=0, atol=0.02)
    torch.testing.assert_close(found.cpu(), colored, rtol=0, atol=0.02)
    assert torch.equal(index, same)
    assert float((index.cpu() != target).float().mean()) < 0.002  # a nearest pixel may fall to the other side
