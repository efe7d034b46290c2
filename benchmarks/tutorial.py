"""The tutorial's network and loop, written from its text: what ubend's speed is compared with.

In its own words, it is: two 3x3 convolutions with batch norm and ReLU to a block; five levels of 64 to 1024
channels; transposed convolutions of kernel 4; Adam at 0.001 on the mean cross entropy; images decoded and
resized again in every epoch by the worker processes of a DataLoader. It uses torchvision, whose transforms call
Pillow as is done here. `tests/test_benchmarks.py` compares the network with `ubend.UNet`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, for values in [0, 1]


class ConvBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.relu(self.bn2(self.conv2(x)))
        return out


class Encoder(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2)
        self.conv = ConvBlock(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(self.pool(x))
        return out


class Decoder(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, out_channels, kernel_size=4, stride=2, padding=1)
        self.conv = ConvBlock(in_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        out: Tensor = self.conv(torch.cat([skip, self.up(x)], dim=1))
        return out


class TutorialUNet(nn.Module):
    """(N, n_channels, H, W) -> (N, n_classes, H, W) logits; H and W divide by 16. The tutorial's width is 64."""

    def __init__(self, n_channels: int = 3, n_classes: int = 3, width: int = 64) -> None:
        super().__init__()
        self.inc = ConvBlock(n_channels, width)
        self.down1 = Encoder(width, 2 * width)
        self.down2 = Encoder(2 * width, 4 * width)
        self.down3 = Encoder(4 * width, 8 * width)
        self.down4 = Encoder(8 * width, 16 * width)
        self.up1 = Decoder(16 * width, 8 * width)
        self.up2 = Decoder(8 * width, 4 * width)
        self.up3 = Decoder(4 * width, 2 * width)
        self.up4 = Decoder(2 * width, width)
        self.outc = nn.Conv2d(width, n_classes, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.inc(x)
        x2 = self.down1(x1)
        x3 = self.down2(x2)
        x4 = self.down3(x3)
        x5 = self.down4(x4)
        x = self.up1(x5, x4)
        x = self.up2(x, x3)
        x = self.up3(x, x2)
        x = self.up4(x, x1)
        logits: Tensor = self.outc(x)
        return logits


class TutorialImages(Dataset[tuple[Tensor, Tensor]]):
    """Images and masks from their files.

    Args:
        files: of image and mask.
        values: the mask value of each class.
        size: (size, size) px, squashed.
    """

    def __init__(self, files: Sequence[tuple[Path, Path]], values: Sequence[int], size: int) -> None:
        self.files, self.size = list(files), size
        self.classes = np.zeros(256, np.int64)
        self.classes[list(values)] = np.arange(len(values))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        """(3, size, size) float32, normalised, and (size, size) int64."""
        path, mask = self.files[number]
        with Image.open(path) as file:
            pixels = np.asarray(file.convert("RGB").resize((self.size, self.size), Image.Resampling.BILINEAR))
        with Image.open(mask) as file:  # by nearest pixel; the tutorial's bilinear invents classes, at the same cost
            index = self.classes[np.asarray(file.resize((self.size, self.size), Image.Resampling.NEAREST))]
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous().float().div(255)
        mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
        return image.sub_(mean).div_(std), torch.from_numpy(index)


def make_epoch(
    images: TutorialImages, n_classes: int, width: int, batch: int, workers: int, device: torch.device
) -> Callable[[], float]:
    """A function that trains the tutorial's network for an epoch and returns the sum of the batches' losses."""
    model = TutorialUNet(3, n_classes, width).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    criterion = nn.CrossEntropyLoss()
    loader = DataLoader(images, batch_size=batch, shuffle=True, num_workers=workers)

    def epoch() -> float:
        model.train()
        running = 0.0
        for images, masks in loader:
            images, masks = images.to(device), masks.to(device)
            optimizer.zero_grad()
            loss = criterion(model(images), masks)
            loss.backward()
            optimizer.step()
            running += loss.item()
        return running

    return epoch
