"""Grad-CAM against a net worked by hand, its definition by hooks, and what it must not depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from score_tools import rows
from torch import Tensor, nn

from gan_uad import registry
from gan_uad.networks.classifier import Classifier
from gan_uad.scoring.grad_cam import enlarged, grad_cam

pytestmark = pytest.mark.numerical

CPU = torch.device("cpu")


class TwoLayers(Classifier):
    """A 1×1 convolution to two maps with ReLU, then the product of their means, and their difference, as logits."""

    resolution = 4

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1, bias=False)
        self.conv.weight.data = torch.tensor([[1.0, 0, 0], [0, 2, 0]])[:, :, None, None]

    def maps(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(F.relu(self.conv(images)), 2)

    def decide(self, maps: Tensor) -> Tensor:
        a, b = maps.mean((2, 3)).unbind(1)
        return torch.stack([b - a, a * b], 1)


def by_hand() -> tuple[Tensor, float, Tensor]:
    """An image, its score and its map, all from pencil and paper.

    Red is 0.4 in the left half, green 0.5 in the top half: map A = [[0.4, 0], [0.4, 0]], B = [[1, 1], [0, 0]], means a = 0.2, b = 0.5.
    Score s = a·b − (b − a) = 0.1 − 0.3 = −0.2. ds/da = b + 1 = 1.5 and ds/db = a − 1 = −0.8; each of the four places has a quarter of
    it, which is also its mean: α_A = 0.375, α_B = −0.2. Sum: [[0.15 − 0.2, −0.2], [0.15, 0]]; negative ones are cut off:
    [[0, 0], [0.15, 0]].
    """
    image = torch.zeros(1, 3, 4, 4)
    image[0, 0, :, :2], image[0, 1, :2] = 0.4, 0.5
    return image, -0.2, torch.tensor([[[0.0, 0.0], [0.15, 0.0]]])


def test_two_layers_by_hand() -> None:
    image, score, expected = by_hand()
    net = TwoLayers()
    found, heat = grad_cam(net.decide, net.maps(image))
    assert found.item() == pytest.approx(score)
    torch.testing.assert_close(heat, expected)
    assert not heat.requires_grad
    assert net.conv.weight.grad is None


def test_the_scorer_enlarges_it() -> None:
    image, score, heat = by_hand()
    scorer = registry.build("scorer", "classifier", {}, nets={"classifier": TwoLayers()}, device=CPU)
    found = scorer.score(torch.cat([image, image.flip(3)]))
    assert found.image.tolist() == pytest.approx([score, score])
    # Bilinear from 2 to 4: ¾ and ¼ of the two nearest on each side, nothing beyond the outermost.
    along = torch.tensor([[1.0, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    torch.testing.assert_close(found.map[0], along @ heat[0] @ along.T)
    torch.testing.assert_close(found.map[1], found.map[0].flip(1))
    torch.testing.assert_close(enlarged(heat, 2), heat)


NETS: dict[str, dict[str, Any]] = {
    "densenet121": {"growth_rate": 4, "block_config": [1, 1], "init_features": 4},
    "cnn": {"channels": [4, 6], "hidden": [8]},
}


def made(name: str) -> Any:
    torch.manual_seed(0)
    net = registry.build("network", name, {"resolution": 32, **NETS[name]})
    net.train()(torch.rand(16, 3, 32, 32) * 2 - 1)
    return net.eval()


@pytest.mark.parametrize("name", NETS)
def test_it_is_the_definition(name: str) -> None:
    """By finite differences: the score gains α_c for each unit that every place of map c gains 1 / (h·w) of."""
    net = made(name).double()
    images = (torch.rand(2, 3, 32, 32) * 2 - 1).double()

    def score(maps: Tensor) -> Tensor:
        logits: Tensor = net.decide(maps)
        return logits[:, 1] - logits[:, 0]

    with torch.no_grad():
        maps, logits = net.maps(images), net(images)
        expected, step = torch.zeros(2, *maps.shape[2:], dtype=torch.float64), 1e-6
        for c in range(maps.shape[1]):
            up = torch.zeros_like(maps)
            up[:, c] = step
            alpha = (score(maps + up) - score(maps - up)) / (2 * step) / maps[0, 0].numel()
            expected += alpha[:, None, None] * maps[:, c]
    found, heat = grad_cam(net.decide, maps)
    torch.testing.assert_close(found, (logits[:, 1] - logits[:, 0]).float())
    torch.testing.assert_close(heat.double(), expected.clamp(min=0), rtol=1e-4, atol=1e-7)
    assert float(heat.max()) > 0


def test_maps_depend_on_no_other_image() -> None:
    scorer = registry.build("scorer", "classifier", {}, nets={"classifier": made("densenet121")}, device=CPU)
    images = torch.rand(20, 3, 32, 32) * 2 - 1
    complete = scorer.score(images).map
    order = torch.randperm(20)
    torch.testing.assert_close(scorer.score(images[order]).map, complete[order], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(scorer.score(images[3:4]).map, complete[3:4], rtol=1e-5, atol=1e-8)


def test_a_net_of_which_only_logits_are_known_has_no_maps() -> None:
    class Plain(nn.Module):
        resolution = 8

        def forward(self, images: Tensor) -> Tensor:
            return images.mean((2, 3))[:, :2]

    found = registry.build("scorer", "classifier", {}, nets={"classifier": Plain()}, device=CPU).score(
        torch.zeros(2, 3, 8, 8)
    )
    assert found.map is None


def test_maps_of_a_run(cli: Any, classifier: Path, tmp_path: Path) -> None:
    """As files, in the unit of normals' pixels, beside a picture of them."""
    result = cli("score", classifier, "--maps", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    count = len(rows(tmp_path / "scores.csv"))
    assert len(list((tmp_path / "maps").iterdir())) == len(list((tmp_path / "segments").iterdir())) == count == 24
    pixels = np.stack([np.asarray(Image.open(file)) for file in sorted((tmp_path / "maps").iterdir())])
    assert pixels.shape == (24, 32, 32)
    assert pixels.max() > 0
    assert (tmp_path / "maps.png").is_file()
    assert not (tmp_path / "triplets.png").exists(), "nothing is reconstructed"
