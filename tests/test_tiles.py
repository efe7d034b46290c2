"""Tiles: every pixel counted once, whatever the sizes; strips are the whole; tiles answer as the whole image does."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from ubend.inference.blending import TorchBlender as Blender
from ubend.models.unet import UNet
from ubend.portable.tiling import TileAxis, TilePlan, Tiling

CPU = torch.device("cpu")
SIDES = st.one_of(st.integers(1, 40), st.integers(1, 700))
PLANS = st.builds(
    lambda size_hw, tile, overlap, depth, margin: Tiling(tile, overlap, 2**depth, margin).plan(size_hw),
    st.tuples(SIDES, SIDES),
    st.integers(1, 300),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 5),
    st.one_of(st.just(0), st.integers(0, 60)),
)


def added_up(axis: TileAxis) -> np.ndarray:
    total = np.zeros(axis.starts[-1] + axis.tile)
    for start, weights in zip(axis.starts, axis.weights, strict=True):
        total[start : start + axis.tile] += weights
    return total


def cut(plan: TilePlan, image: Tensor, row: int, column: int) -> Tensor:
    """(C, H, W) -> the tile as the network is given it, by the plan's own indices."""
    return image[:, plan.rows.input_indices(row)][:, :, plan.columns.input_indices(column)]


def blend(plan: TilePlan, image: Tensor, network: nn.Module) -> tuple[Tensor, list[slice]]:
    """The image's logits put together from strips, and the rows of each strip."""
    blender, strips, rows = None, [], []
    for row in range(len(plan.rows.starts)):
        for column in range(len(plan.columns.starts)):
            with torch.no_grad():
                logits = network(cut(plan, image, row, column)[None])[0]
            blender = blender or Blender(plan, logits.shape[0], CPU)
            answer = blender.add(row, column, logits)
            assert (answer is not None) == (column + 1 == len(plan.columns.starts))
            if answer is not None:
                rows.append(answer[0])
                strips.append(answer[1].clone())
    return torch.cat(strips, dim=1), rows


@settings(max_examples=300)
@given(PLANS)
def test_weights_add_up_to_one(plan: TilePlan) -> None:
    """At every pixel, for any size, tile and overlap; weights of a grid are products, so each axis has to."""
    for axis in (plan.rows, plan.columns):
        total = added_up(axis)
        assert len(total) >= axis.side
        np.testing.assert_allclose(total, 1, atol=1e-6)
        assert axis.weights.min() >= 0


@settings(max_examples=300)
@given(PLANS, st.data())
def test_tiles_lie_where_they_should(plan: TilePlan, data: st.DataObject) -> None:
    """Rising, none needless, all on multiples; rows finished one after the other; margins come from the image."""
    for axis in (plan.rows, plan.columns):
        assert axis.starts[0] == 0
        assert all(b > a for a, b in zip(axis.starts, axis.starts[1:], strict=False))
        assert axis.tile - math.gcd(*axis.starts, axis.tile) < axis.side, "no more than the image, rounded up"
        done = [axis.completed(number) for number in range(len(axis.starts))]
        assert [one.start for one in done[1:]] == [one.stop for one in done[:-1]]
        assert (done[0].start, done[-1].stop) == (0, axis.side)
        number = data.draw(st.integers(0, len(axis.starts) - 1))
        needed = axis.input_indices(number)
        assert len(needed) == axis.tile + 2 * axis.margin
        assert needed.min() >= 0
        assert needed.max() < axis.side
        every = axis.input_indices_of_all()
        np.testing.assert_array_equal(needed, every[axis.starts[number] :][: len(needed)])
        assert len(every) == axis.starts[-1] + len(needed)
        within = np.arange(axis.starts[number], min(axis.side, axis.starts[number] + axis.tile))
        np.testing.assert_array_equal(needed[axis.margin :][: len(within)], within)


@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.9])
def test_overlap_is_at_least_what_was_requested(overlap: float) -> None:
    axis = Tiling(512, overlap).plan((5000, 64)).rows
    shared = [axis.tile - (b - a) for a, b in zip(axis.starts, axis.starts[1:], strict=False)]
    assert min(shared) >= overlap * 512 - 1
    assert all(start % 16 == 0 for start in axis.starts)
    assert max(shared) - min(shared) <= 16, "spread evenly"


def test_every_pixel_has_one_tile_with_a_margin() -> None:
    axis = Tiling(64, margin=12).plan((200, 1)).rows
    assert axis.starts == (0, 64, 128, 144)
    assert set(np.unique(axis.weights)) == {0, 1}
    np.testing.assert_array_equal(axis.input_indices(0)[:14], [12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 1])
    np.testing.assert_array_equal(axis.input_indices(3)[-22:-16], [198, 199, 198, 197, 196, 195])


@settings(max_examples=60)
@given(PLANS.filter(lambda plan: plan.count <= 200))
def test_constant_logits_survive(plan: TilePlan) -> None:
    """And strips together are the image, each row once."""
    given_logits = torch.tensor([3.0, -7.0])

    class Constant(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return given_logits[None, :, None, None].expand(1, 2, plan.rows.tile, plan.columns.tile)

    image = torch.zeros(1, plan.rows.side, plan.columns.side)
    whole, rows = blend(plan, image, Constant())
    assert whole.shape == (2, plan.rows.side, plan.columns.side)
    np.testing.assert_allclose(whole, given_logits[:, None, None].expand_as(whole), atol=1e-5)
    assert [row for strip in rows for row in range(strip.start, strip.stop)] == list(range(plan.rows.side))


@settings(max_examples=60)
@given(PLANS.filter(lambda plan: plan.count <= 200 and not plan.rows.margin), st.integers(0, 2**31))
def test_strips_equal_the_whole(plan: TilePlan, seed: int) -> None:
    """Random logits for each tile, added up by hand on the whole image at once."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = plan.rows, plan.columns
    total = torch.zeros(2, rows.starts[-1] + rows.tile, columns.starts[-1] + columns.tile)
    blender, strips = Blender(plan, 2, CPU), []
    for row, top in enumerate(rows.starts):
        for column, left in enumerate(columns.starts):
            logits = torch.randn(2, rows.tile, columns.tile, generator=generator)
            weight = torch.from_numpy(np.outer(rows.weights[row], columns.weights[column]))
            total[:, top : top + rows.tile, left : left + columns.tile] += logits * weight
            answer = blender.add(row, column, logits)
            strips += [] if answer is None else [answer[1].clone()]  # the next tile is written over it
    np.testing.assert_allclose(torch.cat(strips, 1), total[:, : rows.side, : columns.side], atol=1e-5)


class ValidNet(nn.Module):
    """A small U of convolutions without padding: what it gives is 8 px smaller on each side than what it is given."""

    margin, multiple = 8, 4

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3), nn.Conv2d(8, 2, 3)
        self.down, self.deep = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1)
        self.deepest = nn.Conv2d(4, 4, 1)

    def forward(self, image: Tensor) -> Tensor:
        top = self.first(image)  # -1
        middle = self.down(F.max_pool2d(top[..., 1:-1, 1:-1], 2))  # -2 px, then -2 of twice the size: -4
        middle = middle + F.interpolate(self.deepest(F.max_pool2d(middle, 2)), scale_factor=2.0)
        up = F.interpolate(self.deep(middle), scale_factor=2.0)
        joined = torch.cat([top[..., 3:-3, 3:-3], up], dim=1)  # -4
        return self.last(joined)[..., 3:-3, 3:-3]  # -8


@settings(max_examples=25)
@given(st.tuples(st.integers(1, 90), st.integers(1, 90)), st.sampled_from([16, 24, 32]))
def test_overlap_tile_equals_the_whole(size_hw: tuple[int, int], tile: int) -> None:
    """The paper's: mirrored margins, convolutions without padding, steps that its poolings divide."""
    torch.manual_seed(1)
    network = ValidNet()
    image = torch.rand(1, *size_hw)
    plan = Tiling(tile, multiple=network.multiple, margin=network.margin).plan(size_hw)
    whole = Tiling(10_000, multiple=network.multiple, margin=network.margin).plan(size_hw)
    assert whole.count == 1
    found, _rows = blend(plan, image, network)
    expected, _rows = blend(whole, image, network)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_tiled_unet_equals_the_whole() -> None:
    """Within 1e-4, where neighbours have more in common than the network sees around a pixel: what a tile's edge
    spoils counts with exp(-8) there. At the image's own border too, which is no tile's edge."""
    torch.manual_seed(2)
    network = UNet(1, 2, width=2, depth=4, mean=[0.5], std=[0.3]).eval()
    with torch.no_grad():
        network.head.weight.mul_(20)
        image = torch.rand(1, 700, 531)
        expected = network(image[None])[0]
    assert expected.std() > 0.01
    plan = Tiling(512, 0.5).plan((700, 531))
    assert plan.count == 4
    found, _rows = blend(plan, image, network)
    assert (found - expected).abs().max() < 1e-4
    shifted, _rows = blend(Tiling(512, 0.5, multiple=1).plan((700, 531)), image, network)
    assert (shifted - expected).abs().max() > 5e-4, "off the poolings' grid answers differ, so the test can fail"
