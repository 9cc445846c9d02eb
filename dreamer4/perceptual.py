"""LPIPS with weights from local files: the perceptual term of the tokenizer's loss (paper, section 3.1).

The project ships no weights and downloads none. `Perceptual.load` reads torchvision's VGG-16 file and the LPIPS file
of linear weights, as published; docs/perceptual.md says where they come from.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamer4.errors import CheckpointError

# Convolutions of VGG-16 up to the five places that LPIPS compares: (channels, number in torchvision's `features`).
VGG_BLOCKS = (
    ((64, 0), (64, 2)),
    ((128, 5), (128, 7)),
    ((256, 10), (256, 12), (256, 14)),
    ((512, 17), (512, 19), (512, 21)),
    ((512, 24), (512, 26), (512, 28)),
)
INPUT_MEAN = (-0.030, -0.088, -0.188)  # of LPIPS, for images in [-1, 1]
INPUT_STD = (0.458, 0.448, 0.450)


class Perceptual(nn.Module):
    """Distance `[N]` of images `[N, H, W, 3]` in [0, 1]; frozen, fp32."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        channels, blocks = 3, []
        for block in VGG_BLOCKS:
            convolutions = []
            for out, _ in block:
                convolutions.append(nn.Conv2d(channels, out, 3, padding=1))
                channels = out
            blocks.append(nn.ModuleList(convolutions))
        self.blocks = nn.ModuleList(blocks)
        self.linear = nn.ParameterList(torch.zeros(block[-1][0]) for block in VGG_BLOCKS)
        self.register_buffer("mean", torch.tensor(INPUT_MEAN)[None, :, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(INPUT_STD)[None, :, None, None], persistent=False)
        self.requires_grad_(False)

    @classmethod
    def load(cls, vgg: str | Path, linear: str | Path) -> "Perceptual":
        """Reads both weight files without unpickling code.

        Raises:
            CheckpointError: a file is missing, can't be read, or doesn't have the published layout.
        """
        network = cls()
        vgg_weights, linear_weights = _read(vgg), _read(linear)
        for block, convolutions in zip(VGG_BLOCKS, network.blocks, strict=True):
            assert isinstance(convolutions, nn.ModuleList)
            for (_, number), convolution in zip(block, convolutions, strict=True):
                assert isinstance(convolution, nn.Conv2d) and convolution.bias is not None
                _copy(convolution.weight, vgg_weights, f"features.{number}.weight", vgg)
                _copy(convolution.bias, vgg_weights, f"features.{number}.bias", vgg)
        for i, weight in enumerate(network.linear):
            _copy(weight, linear_weights, f"lin{i}.model.1.weight", linear)
        return network

    def features(self, images_NHWC: Tensor) -> list[Tensor]:
        x = (images_NHWC.float().permute(0, 3, 1, 2) * 2 - 1 - self.mean) / self.std
        outputs = []
        for i, block in enumerate(self.blocks):
            assert isinstance(block, nn.ModuleList)
            if i:
                x = F.max_pool2d(x, 2)
            for convolution in block:
                x = F.relu(convolution(x))
            outputs.append(F.normalize(x, dim=1, eps=1e-10))
        return outputs

    def forward(self, a_NHWC: Tensor, b_NHWC: Tensor) -> Tensor:
        distance = torch.zeros(a_NHWC.shape[0], device=a_NHWC.device)
        with torch.autocast(a_NHWC.device.type, enabled=False):
            features = zip(self.features(a_NHWC), self.features(b_NHWC), self.linear, strict=True)
            for a, b, weight in features:
                difference = (a - b).square() * weight[None, :, None, None]
                distance = distance + difference.sum(dim=1).mean(dim=(1, 2))
        return distance


def _read(path: str | Path) -> dict[str, Tensor]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"perceptual weights '{path}' don't exist; see docs/perceptual.md") from error
    except Exception as error:
        raise CheckpointError(f"perceptual weights '{path}' can't be read as a file of tensors: {error}") from error


def _copy(target: Tensor, weights: dict[str, Tensor], name: str, path: str | Path) -> None:
    if name not in weights:
        raise CheckpointError(
            f"perceptual weights '{path}' have no '{name}'; see docs/perceptual.md for the right file"
        )
    if weights[name].numel() != target.numel():
        raise CheckpointError(
            f"perceptual weights '{path}': '{name}' is {tuple(weights[name].shape)}, not {tuple(target.shape)}"
        )
    target.data.copy_(weights[name].reshape(target.shape))
