"""DenseNet121, balanced streams, supervised training and the classifier's scores, each against a definition or torchvision."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from run_tools import same
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor
from torchvision.models import densenet121
from torchvision.transforms.functional import normalize

from gan_uad import registry
from gan_uad.config import DataConfig, load_config
from gan_uad.data.patches import LabelledStream, PatchSet, load_patches, to_tensor, to_uint8
from gan_uad.errors import UserError
from gan_uad.scoring.base import Scorer, load_scorer
from gan_uad.training.augment import AugmentPipe
from gan_uad.training.train import build_task

pytestmark = pytest.mark.numerical

CPU = torch.device("cpu")
TINY = {"resolution": 16, "growth_rate": 4, "block_config": [1, 1], "init_features": 4}
COUNTS = {0: 13, 1: 5}


def network(**options: Any) -> Any:
    torch.manual_seed(0)
    return registry.build("network", "densenet121", {**TINY, **options})


def task(net: Any = None, **options: Any) -> Any:
    return registry.build("task", "supervised", options, model=net or network(), device=CPU, seed=0)


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> PatchSet:
    """13 normal and 5 anomalous patches of noise; the first pixel is the number of the patch, the second its label."""
    folder = tmp_path_factory.mktemp("labelled")
    rng = np.random.default_rng(0)
    for label, count in COUNTS.items():
        place = folder / ("normal", "tumour")[label]
        place.mkdir()
        for k in range(count):
            picture = rng.integers(0, 200, (16, 16, 3), dtype=np.uint8)
            picture[0, 0], picture[0, 1] = 20 * label + k, label
            Image.fromarray(picture).save(place / f"{k:02d}.png")
    return load_patches(DataConfig(path=str(folder), split_fractions=(1.0, 0.0, 0.0)), 16)


# ---------------------------------------------------------------- the network


def test_it_is_torchvisions_densenet121_on_normalised_images() -> None:
    config = load_config("densenet121_64")
    net = registry.build("network", config.model, {"resolution": 64, **config.network}).eval()
    assert sum(p.numel() for p in net.parameters()) == 6_955_906
    reference = densenet121(weights=None, num_classes=2).eval()
    reference.load_state_dict({key.removeprefix("net."): value for key, value in net.state_dict().items()})
    images = torch.rand(2, 3, 64, 64)
    expected = reference(normalize(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    torch.testing.assert_close(net(images * 2 - 1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 16, "block_config": [6, 12, 24, 16]}, "at least 32 px with 4 blocks, not 16"),
        ({"growth_rate": 0}, "must be at least 1"),
        ({"block_config": []}, "must be at least 1"),
        ({"drop_rate": 1.0}, r"drop_rate must be in \[0, 1\)"),
        ({"channel_base": 64}, "has no option 'channel_base'"),
    ],
)
def test_networks_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        network(**options)


def test_the_smallest_images_are_as_small_as_it_says() -> None:
    assert network(resolution=8).eval()(torch.zeros(1, 3, 8, 8)).shape == (1, 2)


# ---------------------------------------------------------------- ImageNet weights


def published(folder: Path) -> dict[str, Tensor]:
    """A file as torchvision publishes it, with the names of 2017 and random values."""
    torch.manual_seed(5)
    state = densenet121(weights=None).state_dict()

    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key): value for key, value in state.items()}
    torch.save(
        {key: value for key, value in old.items() if "num_batches" not in key}, folder / "densenet121-a639ec97.pth"
    )
    return state


def test_training_starts_from_imagenet_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = published(tmp_path)
    monkeypatch.setenv("GAN_UAD_WEIGHTS", str(tmp_path))
    made: Any = build_task(load_config("densenet121_64", ["optim.init=imagenet"]), CPU)
    made.begin()
    held = {id(p) for group in made.opt.param_groups for p in group["params"]}
    assert held == {id(p) for p in made.model.parameters()}, "what is trained are these weights"
    ours = made.networks()["classifier"].state_dict()
    trunk = {key: value for key, value in state.items() if key.startswith("features.")}
    assert len(trunk) > 700
    assert all(torch.equal(ours[f"net.{key}"], value) for key, value in trunk.items())
    assert ours["net.classifier.weight"].shape == (2, 1024)
    with pytest.raises(UserError, match="does not fit densenet121"):
        task(init="imagenet").begin()


def test_missing_weights_are_never_random_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gan_uad.features import weights

    def offline(*_: Any) -> None:
        raise weights.Unreachable("no network")

    monkeypatch.setattr(weights, "download", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("GAN_UAD_WEIGHTS", raising=False)
    with pytest.raises(UserError, match=r"densenet121 needs densenet121-a639ec97\.pth"):
        task(init="imagenet").begin()


# ---------------------------------------------------------------- the stream


def epochs(patches: PatchSet, balance: str, count: int) -> list[list[int]]:
    """Numbers of the patches that each of `count` epochs shows; the labels must be theirs."""
    length = {"none": 18, "oversample": 26, "undersample": 10}[balance]
    stream = LabelledStream(patches, length, 3, False, False, balance=balance)
    shown = []
    for epoch in range(count):
        images, labels = stream.at(epoch * length)
        pixels = to_uint8(images)
        assert pixels[:, 0, 1, 0].tolist() == labels.tolist()
        assert labels.dtype == torch.int64
        shown.append(pixels[:, 0, 0, 0].tolist())
    return shown


def test_without_balance_every_image_once_an_epoch(patches: PatchSet) -> None:
    for numbers in epochs(patches, "none", 3):
        assert sorted(numbers) == [*range(13), *range(20, 25)]


def test_oversampling_repeats_the_smaller_class_evenly(patches: PatchSet) -> None:
    found = epochs(patches, "oversample", 40)
    for numbers in found:
        counts = Counter(numbers)
        assert all(counts[k] == 1 for k in range(13))
        assert sorted(counts[k] for k in range(20, 25)) == [2, 2, 3, 3, 3], "13 over 5"
    total = Counter(k for numbers in found for k in numbers)
    # 104 of 40 epochs each; which of them come three times is drawn: a standard deviation of √(40·0.24) = 3.1
    assert all(abs(total[k] - 104) < 13 for k in range(20, 25))
    assert found[0] != found[1]


def test_undersampling_draws_the_larger_class_anew(patches: PatchSet) -> None:
    found = epochs(patches, "undersample", 80)
    for numbers in found:
        assert sorted(k for k in numbers if k >= 20) == list(range(20, 25))
        assert len({k for k in numbers if k < 20}) == 5
    total = Counter(k for numbers in found for k in numbers if k < 20)
    # 5 of 13 in each of 80: 30.8 expected, standard deviation 4.4
    assert all(abs(total[k] - 400 / 13) < 18 for k in range(13))


@pytest.mark.parametrize("balance", ["none", "oversample", "undersample"])
def test_the_stream_has_no_state_and_is_shared(patches: PatchSet, balance: str) -> None:
    stream = LabelledStream(patches, 6, 7, True, True, balance=balance)
    forward = [stream.at(nimg) for nimg in range(0, 120, 6)]
    for k in (9, 2, 14, 0):
        fresh = LabelledStream(patches, 6, 7, True, True, balance=balance)
        assert all(torch.equal(a, b) for a, b in zip(fresh.at(6 * k), forward[k], strict=True))
    for rank in (0, 1):
        part = LabelledStream(patches, 6, 7, True, True, rank, 2, balance).at(18)
        assert all(torch.equal(a, b[rank::2]) for a, b in zip(part, forward[3], strict=True))


def test_both_classes_are_needed(patches: PatchSet) -> None:
    with pytest.raises(UserError, match="no anomalous image among 13"):
        task().stream(patches.select(label=0), 4, 0, True, True)
    unlabelled = patches.take(range(18))
    unlabelled.manifest = unlabelled.manifest.replace(label=np.full(18, -1, np.int8))
    with pytest.raises(UserError, match="no train image has a label"):
        task().stream(unlabelled, 4, 0, True, True)
    with pytest.raises(UserError, match="no normal image among the 5 validation images"):
        task().validator(patches.select(label=1))


def test_images_without_a_label_are_left_out(patches: PatchSet, capsys: pytest.CaptureFixture[str]) -> None:
    some = patches.take(range(18))
    labels = some.manifest.label.copy()
    labels[[0, 17]] = -1
    some.manifest = some.manifest.replace(label=labels)
    images, _ = task().stream(some, 16, 0, False, False).at(0)
    assert sorted(to_uint8(images)[:, 0, 0, 0].tolist()) == [*range(1, 13), *range(20, 24)]
    assert "2 train images have no label and are left out" in capsys.readouterr().err


# ---------------------------------------------------------------- the task


def batch(patches: PatchSet) -> tuple[Tensor, Tensor]:
    return to_tensor(patches.images), torch.from_numpy(patches.manifest.label.astype(np.int64))


def test_the_loss_is_weighted_smoothed_cross_entropy(patches: PatchSet) -> None:
    """Weights are the inverse shares of the classes, so that both count the same; smoothing mixes in the uniform distribution."""
    made = task(balance="weight", label_smoothing=0.1, lr=1e-2)
    made.stream(patches, 18, 0, False, False)
    images, labels = batch(patches)
    with torch.no_grad():
        p = made.model(images).double().softmax(1)
    target = F.one_hot(labels, 2) * 0.9 + 0.05
    weight = torch.where(labels == 0, 18 / (2 * 13), 18 / (2 * 5)).double()
    expected = float((weight * -(target * p.log()).sum(1)).mean())
    before = {k: v.clone() for k, v in made.model.state_dict().items()}
    metrics = made.step((images, labels), 0)
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-5)
    assert float(metrics["accuracy"]) == pytest.approx(float((p.argmax(1) == labels).double().mean()))
    moved = [k for k, v in made.model.state_dict().items() if not torch.equal(v, before[k])]
    assert "net.classifier.weight" in moved
    assert "net.features.conv0.weight" in moved


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {0: 1.0, 5000: 1.0}),
        (
            {"schedule": "cosine", "schedule_kimg": 4.0},
            {0: 1.0, 1000: 0.5 + math.sqrt(0.125), 2000: 0.5, 4000: 0.0, 9000: 0.0},
        ),
        ({"schedule": "step", "schedule_kimg": 2.0, "lr_decay": 0.9}, {0: 1.0, 1999: 1.0, 2000: 0.9, 6100: 0.729}),
    ],
)
def test_the_rate_follows_its_schedule(patches: PatchSet, options: dict[str, Any], expected: dict[int, float]) -> None:
    made = task(lr=0.01, **options)
    for nimg, share in expected.items():
        metrics = made.step(batch(patches), nimg)
        assert float(metrics["lr"]) == pytest.approx(0.01 * share, rel=1e-6, abs=1e-12)
        assert made.opt.param_groups[0]["lr"] == pytest.approx(0.01 * share, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "cosine"}, "schedule_kimg"),
        ({"schedule_kimg": 3.0}, "schedule_kimg"),
        ({"lr": 0.0}, "need lr > 0"),
        ({"augment": -1.0}, "augment >= 0"),
        ({"label_smoothing": 1.0}, "label_smoothing in"),
        ({"balance": "some"}, "option balance"),
        ({"init": "random"}, "option init"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        task(**options)


def test_augmentation_is_adas_scaled_down_and_keeps_hue() -> None:
    made = task(augment=0.3)
    drawn = made.draw(400, torch.Generator().manual_seed(1))
    full = AugmentPipe("gc", rotate=0.0, hue=0.0, lumaflip=0.0).draw(400, 16, 1.0, torch.Generator().manual_seed(1))
    same_place, same_color = torch.eye(3).double(), torch.eye(4).double()
    torch.testing.assert_close(drawn.geometry - same_place, 0.3 * (full.geometry - same_place))
    torch.testing.assert_close(drawn.color - same_color, 0.3 * (full.color - same_color))
    assert bool((drawn.geometry[:, 0, 1] == 0).all()), "no rotation"
    # Changes of hue would take red, green and blue in a circle: the colour matrix is symmetric without them.
    torch.testing.assert_close(drawn.color[:, :3, :3], drawn.color[:, :3, :3].mT)
    assert float(drawn.geometry[:, 0, 0].std()) == pytest.approx(0.3 * 0.2, rel=0.35), (
        "log2(scale · aspect) varies by 0.28"
    )


def test_the_picture_of_a_snapshot_is_what_it_is_shown_and_leaves_no_trace(patches: PatchSet) -> None:
    made = task(augment=0.5)
    made.stream(patches, 6, 0, False, False)
    before = made.state_dict()["rng"].clone()
    first = made.sample()
    assert first.shape == (18, 3, 16, 16)
    assert torch.equal(first, made.sample())
    assert torch.equal(made.state_dict()["rng"], before)
    assert not torch.equal(first, made.examples)


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "adamax"])
def test_a_state_resumes_exactly(patches: PatchSet, optimizer: str) -> None:
    def steps(made: Any, first: int, last: int) -> None:
        stream = made.stream(patches, 6, 0, True, True)
        for k in range(first, last):
            made.step(stream.at(6 * k), 6 * k)

    options = {"optimizer": optimizer, "augment": 0.3, "balance": "weight", "schedule": "cosine", "schedule_kimg": 0.05}
    whole, begun, rest = task(**options), task(**options), task(network(), **options)
    steps(whole, 0, 4)
    steps(begun, 0, 2)
    rest.load_state_dict(begun.state_dict())
    steps(rest, 2, 4)
    same(rest.state_dict(), whole.state_dict())


# ---------------------------------------------------------------- validation


def test_validation_figures_are_those_of_scikit_learn_and_leave_no_trace(patches: PatchSet) -> None:
    made = task()
    made.step(batch(patches), 0)
    made.model.net.features.norm0.eval()  # a frozen part
    before, rng = {k: v.clone() for k, v in made.model.state_dict().items()}, torch.get_rng_state()
    found = made.validator(patches).validate(0)
    same(dict(made.model.state_dict()), before)
    assert torch.equal(torch.get_rng_state(), rng)
    assert made.model.training
    assert not made.model.net.features.norm0.training
    images, labels = batch(patches)
    with torch.no_grad():
        p = made.model.eval()(images).double().softmax(1).numpy()
    assert found["val_loss"] == pytest.approx(log_loss(labels, p), rel=1e-5)
    assert found["val_accuracy"] == pytest.approx(float((p.argmax(1) == labels.numpy()).mean()))
    assert found["val_auroc"] == pytest.approx(roc_auc_score(labels, p[:, 1]))
    balanced = task(made.model, balance="weight").validator(patches).validate(0)
    each = -np.log(p[np.arange(18), labels])
    assert balanced["val_loss"] == pytest.approx((each[labels == 0].mean() + each[labels == 1].mean()) / 2, rel=1e-5)


@pytest.mark.parametrize(("best_by", "larger"), [("val_loss", False), ("val_accuracy", True), ("val_auroc", True)])
def test_what_best_means(patches: PatchSet, best_by: str, larger: bool) -> None:
    validator = task(best_by=best_by).validator(patches)
    assert (validator.metric, validator.larger) == (best_by, larger)


def test_a_network_that_diverged_has_no_figures(patches: PatchSet) -> None:
    made = task()
    with torch.no_grad():
        made.model.net.classifier.weight.fill_(math.nan)
    found = made.validator(patches).validate(0)
    assert math.isnan(found["val_loss"])
    assert math.isnan(found["val_auroc"])


# ---------------------------------------------------------------- the scorer


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    made: Scorer = registry.build("scorer", "classifier", {}, nets={"classifier": network().eval()}, device=CPU)
    return made


def test_the_score_is_the_logit_and_depends_on_no_other_image(scorer: Any, patches: PatchSet) -> None:
    images, _ = batch(patches)
    with torch.no_grad():
        logits = scorer.net(images)
    whole = scorer.score(images)
    torch.testing.assert_close(whole.image, logits[:, 1] - logits[:, 0], rtol=1e-4, atol=1e-6)
    assert whole.map is not None
    assert whole.map.shape == (len(images), 16, 16)
    assert whole.reconstruction is None
    for size in (1, 5, 16):
        pieces = torch.cat([scorer.score(part).image for part in images.split(size)])
        torch.testing.assert_close(pieces, whole.image, rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match="takes 16x16 px"):
        scorer.score(torch.zeros(1, 3, 8, 8))


def test_compare_is_the_accuracy_with_its_interval(scorer: Any, patches: PatchSet) -> None:
    images, labels = batch(patches)
    called = (scorer.score(images).image > 0).long()
    right, n, z = int((called == labels).sum()), 18, 1.959963984540054
    centre, half = right / n + z * z / (2 * n), z * math.sqrt(right * (n - right) / n**3 + z * z / (4 * n * n))
    expected = {
        "accuracy": right / n, "accuracy_low": (centre - half) / (1 + z * z / n), "accuracy_high": (centre + half) / (1 + z * z / n),
        "sensitivity": float(called[labels == 1].double().mean()), "specificity": float((1 - called[labels == 0]).double().mean()), "n": 18,
    }  # fmt: skip
    assert scorer.compare(images, labels) == pytest.approx(expected)
    unknown = torch.where(torch.arange(18) < 4, -1, labels)
    assert scorer.compare(images, unknown)["n"] == 14
    for bad in (None, torch.full((18,), -1)):
        with pytest.raises(UserError, match="needs labelled images"):
            scorer.compare(images, bad)


def test_it_comes_back_from_its_file(scorer: Any, patches: PatchSet, tmp_path: Path) -> None:
    images, _ = batch(patches)
    scorer.save(tmp_path / "scorer.safetensors")
    torch.manual_seed(9)
    blank = registry.build("network", "densenet121", TINY).eval()
    back = load_scorer(tmp_path / "scorer.safetensors", nets={"classifier": blank}, device=CPU)
    assert torch.equal(back.score(images).image, scorer.score(images).image)
    with pytest.raises(UserError, match="needs a trained classifier, not gan"):
        registry.build("scorer", "classifier", {}, nets={"gan": blank}, device=CPU)
