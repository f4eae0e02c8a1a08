"""Convolutions of 1x1 as linear layers over the channels of each position, for kernels that have no convolution."""

from torch import Tensor, nn


def linear_of(layer: nn.Module) -> nn.Linear | None:
    """A linear layer with the weight of one, or of a convolution that reads every position by itself; else None."""
    if type(layer) is nn.Linear:
        return layer
    if type(layer) is not nn.Conv2d or layer.kernel_size != (1, 1) or layer.groups != 1 or not _unpadded(layer):
        return None
    made = nn.Linear(layer.in_channels, layer.out_channels, device="meta")  # nothing is drawn at random
    made.weight = nn.Parameter(layer.weight.detach().flatten(1), requires_grad=False)
    made.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach(), requires_grad=False)  # type: ignore[assignment]
    return made


class Pointwise(nn.Module):
    """A convolution of 1x1 by a linear layer; outputs lie in memory as inputs do, best with channels last."""

    def __init__(self, linear: nn.Module, stride: tuple[int, ...]) -> None:
        super().__init__()
        self.linear, self.stride = linear, stride

    def forward(self, x: Tensor) -> Tensor:
        """x (images, channels, height, width); (images, outputs, ...)"""
        down, across = self.stride
        found: Tensor = self.linear(x[:, :, ::down, ::across].movedim(1, 3)).movedim(3, 1)
        return found.contiguous() if x.is_contiguous() else found

    def extra_repr(self) -> str:
        """As torch's own layer has it."""
        return f"stride={self.stride}"


def _unpadded(layer: nn.Conv2d) -> bool:
    return layer.padding in ((0, 0), "valid", "same")
