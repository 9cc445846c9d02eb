"""LPIPS from local files, against an independent implementation on the published layout."""

from pathlib import Path

import pytest
import torch
from factories import normal
from torch import Tensor, nn

from dreamer4.errors import CheckpointError
from dreamer4.perceptual import Perceptual
from dreamer4.rng import generator

# torchvision's VGG-16: widths of the convolutions, "M" is a pooling layer; every convolution is followed by a ReLU.
VGG16 = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512]
COMPARED = [3, 8, 15, 22, 29]  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3


def vgg_features() -> nn.Sequential:
    """The layers in torchvision's numbering, with random weights."""
    layers, channels = [], 3
    for width in VGG16:
        if width == "M":
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
        channels = width
    network, draw = nn.Sequential(*layers).requires_grad_(False), generator("vgg")
    for parameter in network.parameters():
        inputs = parameter[0].numel() if parameter.dim() == 4 else 100
        parameter.copy_(torch.randn(parameter.shape, generator=draw) * (2 / inputs) ** 0.5)
    return network


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, nn.Sequential, list[Tensor]]:
    """Both weight files as they are published, and what is in them."""
    folder, network = tmp_path_factory.mktemp("perceptual"), vgg_features()
    weights = {f"features.{name}": value for name, value in network.state_dict().items()}
    torch.save({**weights, "classifier.0.weight": torch.zeros(2, 2)}, folder / "vgg16.pth")
    draw = generator("linear")
    linear = [torch.rand((1, width, 1, 1), generator=draw) for width in (64, 128, 256, 512, 512)]
    torch.save({f"lin{i}.model.1.weight": weight for i, weight in enumerate(linear)}, folder / "vgg.pth")
    return folder / "vgg16.pth", folder / "vgg.pth", network, linear


@pytest.fixture(scope="module")
def network(files: tuple) -> Perceptual:
    return Perceptual.load(files[0], files[1])


def images(seed: int) -> Tensor:
    return torch.sigmoid(normal(2, 20, 16, 3, seed=seed))


def test_distance_equals_an_independent_implementation(files: tuple, network: Perceptual):
    _, _, layers, linear = files

    def compared(image: Tensor) -> list[Tensor]:
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        x, found = ((image * 2 - 1 - shift) / scale).movedim(-1, 1), []
        for i, layer in enumerate(layers):
            x = layer(x)
            if i in COMPARED:
                found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    expected = torch.zeros(2)
    for a, b, weight in zip(compared(images(0)), compared(images(1)), linear, strict=True):
        expected += ((a - b).square() * weight).sum(1).mean((1, 2))
    assert torch.allclose(network(images(0), images(1)), expected, rtol=1e-4)


def test_an_image_is_at_distance_zero_of_itself_only(network: Perceptual):
    assert network(images(0), images(0)).abs().max() == 0
    assert network(images(0), images(1)).min() > 1e-3


def test_gradient_reaches_the_image_and_no_weight(network: Perceptual):
    image = images(0).requires_grad_()
    network(image, images(1)).sum().backward()
    assert image.grad is not None and image.grad.isfinite().all() and image.grad.abs().max() > 0
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())


def test_the_gradient_of_black_frames_is_finite(network: Perceptual):
    image = torch.zeros(1, 16, 16, 3, requires_grad=True)
    network(image, images(1)[:1, :16]).sum().backward()
    assert image.grad.isfinite().all()


def test_autocast_changes_nothing(network: Perceptual):
    expected = network(images(0), images(1))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network(images(0), images(1)), expected)


def test_a_missing_file_is_named(files: tuple, tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"none\.pth' don't exist; see docs/perceptual\.md"):
        Perceptual.load(tmp_path / "none.pth", files[1])


def test_a_damaged_file_is_named(files: tuple, tmp_path: Path):
    (tmp_path / "half.pth").write_bytes(files[1].read_bytes()[:500])
    with pytest.raises(CheckpointError, match=r"half\.pth' can't be read as a file of tensors"):
        Perceptual.load(files[0], tmp_path / "half.pth")


class Trap:
    """Would run code when it is unpickled."""

    def __reduce__(self):
        return print, ("a trap was sprung",)


def test_code_in_a_file_is_not_run(files: tuple, tmp_path: Path, capsys: pytest.CaptureFixture):
    torch.save({"lin0.model.1.weight": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(CheckpointError, match=r"trap\.pth' can't be read"):
        Perceptual.load(files[0], tmp_path / "trap.pth")
    assert capsys.readouterr().out == ""


def test_the_wrong_file_is_recognised(files: tuple, tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"vgg\.pth' have no 'features\.0\.weight'"):
        Perceptual.load(files[1], files[1])
    torch.save({f"lin{i}.model.1.weight": torch.zeros(1, 64, 1, 1) for i in range(5)}, tmp_path / "small.pth")
    with pytest.raises(CheckpointError, match=r"small\.pth': 'lin1\.model\.1\.weight' is \(1, 64, 1, 1\)"):
        Perceptual.load(files[0], tmp_path / "small.pth")
