"""Residual networks for small images, with parameter-free (option-A) shortcuts.

He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2: depth 6k + 2, three stages of k basic
blocks; where the shape changes, the shortcut is a strided slice padded with zero channels on both sides. The
names of the layers are those of the checkpoints (conv1 bn1 layer1-3 linear). Deviation: widths and input channels
are arguments, so that the digits task can use the same network.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from automc.errors import TaskError


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        before = (channels - channels_in) // 2
        self.padding = (0, 0, 0, 0, before, channels - channels_in - before)  # zero channels before and after

    def forward(self, x: Tensor) -> Tensor:
        """From (B, channels_in, H, W) to (B, channels, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride != 1 or any(self.padding):
            x = F.pad(x[:, :, :: self.stride, :: self.stride], self.padding)
        return F.relu(out + x)


class ResNet(nn.Module):
    """A 3x3 stem, three stages of basic blocks, global average pooling and one linear layer."""

    def __init__(
        self, depth: int, *, widths: tuple[int, int, int] = (16, 32, 64), channels_in: int = 3, classes: int = 10
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise TaskError(f"The depth of a CIFAR ResNet must be 6k + 2; it is {depth}: take 20, 32, 44, 56 or 110.")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(channels_in, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(widths[0], widths[0], blocks, stride=1)
        self.layer2 = _stage(widths[0], widths[1], blocks, stride=2)
        self.layer3 = _stage(widths[1], widths[2], blocks, stride=2)
        self.linear = nn.Linear(widths[2], classes)

    def forward(self, x: Tensor) -> Tensor:
        """From images (B, channels_in, H, W) to class scores (B, classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # (B, widths[2])
        scores: Tensor = self.linear(x)
        return scores


def _stage(channels_in: int, channels: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = BasicBlock(channels_in, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))
