"""Our synchronised batch norm in one process is torch's batch norm."""

import pytest
import torch
from torch import nn

from ubend.training.distributed import ALONE
from ubend.training.sync_batch_norm import SyncedBatchNorm, synchronise_batch_norm

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_own_batch_norm_is_torchs(dtype: torch.dtype, device: str) -> None:
    """Alone: outputs, all gradients, running statistics; far from zero too, where squares cost digits."""
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.BatchNorm2d(5), nn.ReLU(), nn.BatchNorm2d(5)).to(device)
    nn.init.normal_(theirs[0].weight)
    mine = nn.Sequential(nn.BatchNorm2d(5), nn.ReLU(), nn.BatchNorm2d(5)).to(device)
    mine.load_state_dict(theirs.state_dict())
    weights = list(mine.parameters())
    synchronise_batch_norm(mine, ALONE)
    if dtype == torch.bfloat16:  # a second one would make the first one's rounding large
        mine, theirs, weights = mine[:1], theirs[:1], weights[:2]
    assert isinstance(mine[-1], SyncedBatchNorm)
    assert list(mine.state_dict()) == list(theirs.state_dict())
    assert all(a is b for a, b in zip(mine.parameters(), weights, strict=True)), "those that the optimiser knows"
    far = 50 if dtype == torch.float32 else 1
    image = (torch.randn(4, 5, 6, 7) + torch.arange(5).view(-1, 1, 1) * far).to(device, dtype)
    pull = torch.randn(4, 5, 6, 7, device=device)
    found = []
    for net in (mine, theirs):
        x = image.clone().requires_grad_()
        out = net(x)
        (out.float() * pull).sum().backward()
        assert x.grad is not None
        found.append([out, x.grad, *(p.grad for p in net.parameters()), *net.buffers()])
        assert out.dtype == x.grad.dtype == dtype
    slack = 0.05 if dtype == torch.bfloat16 else 1e-4 if device == "cpu" else 1e-3
    close = {"rtol": slack, "atol": slack}
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, **close)
    torch.testing.assert_close(mine.eval()(image), theirs.eval()(image), **close)
