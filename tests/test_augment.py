"""Adaptive discriminator augmentation against numpy, scipy and closed forms."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest
import torch
from scipy import ndimage, signal, stats
from scipy.spatial.transform import Rotation
from torch import Tensor

from gan_uad.training.augment import ADA_KIMG, SYM6, TRANSFORMS, AdaptiveP, Augmentation, AugmentPipe

pytestmark = pytest.mark.numerical

GREY = np.full(3, 3**-0.5)


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _draw(name: str, count: int, resolution: int = 32, p: float = 1.0, seed: int = 0) -> Augmentation:
    """With one transform on, the others off."""
    kinds = {kind: [t for t in transforms if t != name] for kind, transforms in TRANSFORMS.items()}
    (kind,) = [kind for kind, transforms in TRANSFORMS.items() if name in transforms]
    return AugmentPipe(kind, **dict.fromkeys(kinds[kind], 0.0)).draw(count, resolution, p, _rng(seed))


def _waves(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`[3, ...]`: sums of waves of up to 2 cycles in 64 px, at any points."""
    rng = np.random.default_rng(0)
    waves = rng.uniform(-2, 2, (2, 3, 4, 1, 1)) / 64, rng.uniform(0, 2 * np.pi, (3, 4, 1, 1))
    return np.cos(2 * np.pi * (waves[0][0] * x + waves[0][1] * y) + waves[1]).mean(1)


def _identity(count: int) -> Tensor:
    return torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)


def _as_published(image: np.ndarray, geometry: np.ndarray) -> np.ndarray:
    """Appendix B.1 on one `[S, S]` image, as far padded as reflection goes, by numpy and scipy in float64."""
    size, half = len(image), np.asarray(SYM6) / np.sqrt(2)
    wide = 3 * size - 2
    fine = np.pad(image, size - 1, mode="reflect")
    for axis in (0, 1):
        fine = signal.upfirdn(2 * half, fine, up=2, axis=axis).take(range(5, 5 + 2 * wide), axis)
    to = (np.arange(2 * (size + 6)) + 0.5) / 2 - (size + 6) / 2  # pixels from the middle
    x, y = np.meshgrid(to, to)
    at = np.einsum("ij,jyx->iyx", geometry[:2, :2], np.stack([x, y])) + geometry[:2, 2, None, None] * size / 2
    fine = ndimage.map_coordinates(fine, at[::-1] * 2 + wide - 0.5, order=1, mode="grid-constant")
    for axis in (0, 1):
        fine = signal.upfirdn(half[::-1], fine, axis=axis).take(range(12, 12 + 2 * size, 2), axis)
    return fine


def test_filter_is_an_orthogonal_lowpass_with_six_vanishing_moments() -> None:
    h = np.asarray(SYM6)
    assert h.sum() == pytest.approx(2**0.5, abs=1e-11)
    for lag in range(0, 12, 2):
        assert h[lag:] @ h[: 12 - lag] == pytest.approx(float(lag == 0), abs=1e-11)
    highpass = h * (-1.0) ** np.arange(12)
    for moment in range(6):
        assert highpass @ np.linspace(-1, 1, 12) ** moment == pytest.approx(0, abs=1e-11)
    # Daubechies' own filter is all this too; of the filters that are, the symlet's phase is the closest to linear.
    frequency = np.linspace(-1.5, 1.5, 301)
    phase = np.unwrap(np.angle(np.exp(-1j * np.outer(frequency, np.arange(12))) @ h))
    assert np.abs(phase - np.polyval(np.polyfit(frequency, phase, 1), frequency)).max() < 0.1  # Daubechies' own: 0.36


@pytest.mark.parametrize("size", [4, 8, 16, 64])
def test_resampling_equals_the_published_procedure(size: int) -> None:
    images = torch.rand(6, 3, size, size, dtype=torch.float64, generator=_rng()) * 2 - 1
    drawn = AugmentPipe("bg").draw(6, size, 1.0, _rng(size))
    expected = [
        [_as_published(channel, g) for channel in image]
        for image, g in zip(images.numpy(), drawn.geometry.numpy(), strict=True)
    ]
    np.testing.assert_allclose(AugmentPipe.apply(images, drawn), expected, atol=1e-9)
    np.testing.assert_allclose(AugmentPipe.apply(images.float(), drawn), expected, atol=2e-4)


@pytest.mark.parametrize("name", ["xflip", "rotate90", "xint", "rotate", "scale", "aniso", "xfrac"])
def test_geometry_moves_a_smooth_picture_where_it_says(name: str) -> None:
    drawn = _draw(name, 16, 64)
    x, y = np.meshgrid(np.arange(64) - 31.5, np.arange(64) - 31.5)
    results = AugmentPipe.apply(torch.from_numpy(_waves(x, y)).float().repeat(16, 1, 1, 1), drawn)
    # The filter delays long waves by not quite the middle of its taps: undone on the way back, unless the picture was turned between.
    off = (np.arange(12) @ SYM6 / np.sum(SYM6) - 5.5) / 2
    for result, g in zip(results.numpy(), drawn.geometry.numpy(), strict=True):
        to = np.einsum("ij,jyx->iyx", g[:2, :2], np.stack([x + off, y + off])) + 32 * g[:2, 2, None, None] - off
        inside = np.abs(to).max(0) < 28
        assert inside.sum() > 800
        np.testing.assert_allclose(result[:, inside], _waves(*to)[:, inside], atol=0.004)


def test_flips_and_turns_are_numpy_s() -> None:
    x, y = np.meshgrid(np.arange(64), np.arange(64))
    image = _waves(x, y)
    for name, candidates in {
        "xflip": [image, image[..., ::-1]],
        "rotate90": [np.rot90(image, turns, (1, 2)) for turns in range(4)],
    }.items():
        seen = set()
        for result in AugmentPipe.apply(torch.from_numpy(image).repeat(24, 1, 1, 1), _draw(name, 24)).numpy():
            nearest, *others = np.sort([np.abs(result - c).mean() for c in candidates])
            assert nearest < 0.03  # by up to 0.4 pixels, see above
            assert others[0] > 0.2
            seen.add(int(np.argmin([np.abs(result - c).mean() for c in candidates])))
        assert seen == set(range(len(candidates)))


def test_integer_translations_are_exact_inside() -> None:
    images = torch.rand(40, 3, 32, 32, dtype=torch.float64, generator=_rng()) * 2 - 1
    drawn = _draw("xint", 40)
    shifts = -drawn.geometry[:, :2, 2] * 16
    torch.testing.assert_close(shifts, shifts.round(), rtol=0, atol=1e-12)
    assert set(shifts.flatten().int().tolist()) == set(range(-4, 5))
    for image, result, (x, y) in zip(images, AugmentPipe.apply(images, drawn), shifts.int().tolist(), strict=True):
        moved = np.roll(np.pad(image.numpy(), ((0, 0), (8, 8), (8, 8)), mode="reflect"), (y, x), (1, 2))
        np.testing.assert_allclose(result, moved[:, 8:-8, 8:-8], atol=1e-9)


def test_fractional_translation_is_a_shift_of_phases() -> None:
    f = np.fft.fftfreq(32)
    band = np.hypot(f[:, None], f) < 0.08
    noise = torch.randn(8, 3, 32, 32, dtype=torch.float64, generator=_rng()).numpy()
    images = torch.from_numpy(np.fft.ifft2(np.fft.fft2(noise) * band).real * 3)
    drawn = _draw("xfrac", 8)
    results = AugmentPipe.apply(images, drawn)
    for image, result, (x, y) in zip(images.numpy(), results, -16 * drawn.geometry[:, :2, 2].numpy(), strict=True):
        phase = np.exp(-2j * np.pi * (f[:, None] * y + f * x))
        moved = np.fft.ifft2(np.fft.fft2(image) * phase).real
        kept_x, kept_y = (slice(max(int(t) + 3, 3), min(int(t) - 3, -3)) for t in (x, y))
        np.testing.assert_allclose(result[:, kept_y, kept_x], moved[:, kept_y, kept_x], atol=0.01)


def test_color_transforms_do_what_their_names_say() -> None:
    rgb = torch.rand(50, 3, 4, 4, dtype=torch.float64, generator=_rng()) * 2 - 1
    before = rgb.numpy()
    luma = np.einsum("c,ncyx->nyx", GREY, before)[:, None] * GREY.reshape(3, 1, 1)
    chroma = before - luma

    def after(name: str) -> tuple[np.ndarray, np.ndarray]:
        drawn = _draw(name, 50)
        return AugmentPipe.apply(rgb, drawn).numpy(), drawn.color.numpy()

    def wide(value: np.ndarray) -> np.ndarray:
        return value.reshape(-1, 1, 1, 1)

    found, matrix = after("brightness")
    np.testing.assert_allclose(found, before + wide(matrix[:, 0, 3]), atol=1e-12)
    found, matrix = after("contrast")
    np.testing.assert_allclose(found, before * wide(matrix[:, 0, 0]), atol=1e-12)
    found, matrix = after("lumaflip")
    flipped = np.abs(found - before).max((1, 2, 3)) > 1e-6
    assert 10 < flipped.sum() < 40
    np.testing.assert_allclose(found, np.where(wide(flipped), chroma - luma, before), atol=1e-12)
    found, matrix = after("hue")
    angles = np.arctan2((matrix[:, 1, 0] - matrix[:, 0, 1]) * 3**0.5, matrix[:, 0, 0] * 3 - 1)
    rotations = Rotation.from_rotvec(angles[:, None] * GREY).as_matrix()
    np.testing.assert_allclose(found, np.einsum("nij,njyx->niyx", rotations, before), atol=1e-12)
    found, matrix = after("saturation")
    factor = (np.trace(matrix[:, :3, :3], axis1=1, axis2=2) - 1) / 2
    np.testing.assert_allclose(found, luma + chroma * wide(factor), atol=1e-12)


def test_drawn_values_follow_the_published_distributions() -> None:
    def check(values: Tensor, distribution: str, *parameters: float) -> None:
        assert stats.kstest(values.numpy().ravel(), distribution, parameters).pvalue > 0.01

    def geometry(name: str) -> Tensor:
        return _draw(name, 2000).geometry

    def color(name: str) -> Tensor:
        return _draw(name, 2000).color

    check(geometry("scale")[:, 0, 0].log2(), "norm", 0, 0.2)
    check(geometry("aniso")[:, 0, 0].log2(), "norm", 0, 0.2)
    check(geometry("aniso")[:, 1, 1].log2(), "norm", 0, 0.2)
    check(geometry("xfrac")[:, :2, 2] / 2, "norm", 0, 0.125)
    turn = geometry("rotate")
    check(torch.atan2(turn[:, 1, 0], turn[:, 0, 0]), "uniform", -np.pi, 2 * np.pi)
    check(color("brightness")[:, 1, 3], "norm", 0, 0.2)
    check(color("contrast")[:, 1, 1].log2(), "norm", 0, 0.5)
    saturation = color("saturation")
    check(torch.log2(saturation[:, 0, 0] - saturation[:, 0, 1]), "norm", 0, 1)
    hue = color("hue")
    check(torch.atan2((hue[:, 1, 0] - hue[:, 0, 1]) * 3**0.5, hue[:, 0, 0] * 3 - 1), "uniform", -np.pi, 2 * np.pi)
    check(_draw("xint", 2000, 1 << 20).geometry[:, :2, 2] / 2, "uniform", -0.125, 0.25)


def test_order_of_transforms() -> None:
    """A seed draws the same values whatever else is on: all of them together are their product in the published order."""
    together = AugmentPipe("bg", rotate=0).draw(20, 32, 1.0, _rng()).geometry
    single = [_draw(name, 20).geometry for name in ["xflip", "rotate90", "xint", "scale", "aniso", "xfrac"]]
    torch.testing.assert_close(together, reduce(torch.matmul, single))
    together = AugmentPipe("bg", aniso=0).draw(20, 32, 1.0, _rng()).geometry
    single = [_draw(name, 20).geometry for name in ["xflip", "rotate90", "xint", "scale", "rotate", "xfrac"]]
    torch.testing.assert_close(together, reduce(torch.matmul, single))
    together = AugmentPipe("c").draw(20, 32, 1.0, _rng()).color
    single = [_draw(name, 20).color for name in TRANSFORMS["color"]]
    torch.testing.assert_close(together, reduce(torch.matmul, single[::-1]))
    # Stretching happens between two rotations: it is along any direction, of the image and of the result.
    stretched = AugmentPipe("g", scale=0, xfrac=0).draw(2000, 64, 1.0, _rng()).geometry[:, :2, :2]
    for product in (stretched @ stretched.mT, stretched.mT @ stretched):
        axis = torch.atan2(2 * product[:, 0, 1], product[:, 0, 0] - product[:, 1, 1])
        assert stats.kstest(axis.numpy(), "uniform", (-np.pi, 2 * np.pi)).pvalue > 0.01


@pytest.mark.parametrize("p", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("name", [name for transforms in TRANSFORMS.values() for name in transforms])
def test_how_often_a_transform_happens(name: str, p: float) -> None:
    count = 1500
    drawn = _draw(name, count, 1 << 16, p, seed=3)
    changed = (drawn.geometry != torch.eye(3)).flatten(1).any(1) | (drawn.color != torch.eye(4)).flatten(1).any(1)
    # A draw may come out as "not flipped" or "turned by 0".
    visible = {"xflip": 1 / 2, "lumaflip": 1 / 2, "rotate90": 3 / 4}.get(name, 1)
    low, high = stats.binom(count, min(p, 1) * visible).interval(0.9999)
    assert low <= int(changed.sum()) <= high


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_happens_at_p_zero(dtype: torch.dtype) -> None:
    images = torch.randn(5, 3, 16, 16, dtype=dtype)
    pipe = AugmentPipe()
    assert torch.equal(pipe.apply(images, pipe.draw(5, 16, 0.0, _rng())), images)
    p_low = pipe.draw(50, 16, 0.02, _rng())
    at_rest = (p_low.geometry == torch.eye(3)).flatten(1).all(1) & (p_low.color == torch.eye(4)).flatten(1).all(1)
    assert 20 < int(at_rest.sum()) < 50
    images = torch.randn(50, 3, 16, 16, dtype=dtype)
    assert torch.equal(pipe.apply(images, p_low)[at_rest], images[at_rest])


def test_groups() -> None:
    def moves_and_colors(group: str, **multipliers: float) -> tuple[bool, bool]:
        drawn = AugmentPipe(group, **multipliers).draw(20, 16, 1.0, _rng())
        return not torch.equal(drawn.geometry, _identity(20)[:, :3, :3]), not torch.equal(drawn.color, _identity(20))

    assert moves_and_colors("bgc") == (True, True)
    assert moves_and_colors("bg") == moves_and_colors("blit") == moves_and_colors("geom") == (True, False)
    assert moves_and_colors("color") == moves_and_colors("c") == (False, True)
    assert moves_and_colors("c", xflip=1) == (True, True)
    blit = AugmentPipe("blit").draw(50, 32, 1.0, _rng()).geometry
    assert set(blit[:, :2, :2].unique().tolist()) == {-1.0, 0.0, 1.0}
    # Switching colour off leaves the geometry of a seed as it was.
    both, one = (AugmentPipe(group).draw(20, 32, 0.5, _rng()).geometry for group in ("bgc", "bg"))
    assert torch.equal(both, one)
    for wrong in ("bgx", "", "bb", "blitgeom"):
        with pytest.raises(ValueError, match="blit, geom, color"):
            AugmentPipe(wrong)
    with pytest.raises(ValueError, match="cutout"):
        AugmentPipe("bgc", cutout=1)


def test_a_seed_fixes_the_batch_and_p_does_not_move_the_generator() -> None:
    pipe, one, other = AugmentPipe(), _rng(), _rng()
    a, b = pipe.draw(9, 32, 0.7, one), pipe.draw(9, 32, 0.7, other)
    assert torch.equal(a.geometry, b.geometry)
    assert torch.equal(a.color, b.color)
    pipe.draw(9, 32, 0.1, one)
    AugmentPipe("b").draw(9, 32, 0.9, other)
    assert torch.equal(one.get_state(), other.get_state())
    assert not torch.equal(a.geometry, pipe.draw(9, 32, 0.7, one).geometry)


@pytest.mark.parametrize("size", [4, 8, 32])
def test_an_image_s_result_does_not_depend_on_the_others(size: int) -> None:
    images = torch.rand(12, 3, size, size, dtype=torch.float64, generator=_rng()) * 2 - 1
    drawn = AugmentPipe().draw(12, size, 0.4, _rng(1))
    together = AugmentPipe.apply(images, drawn)

    def check(found: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)

    far = drawn.geometry.clone()
    far[0, :2, :2] *= 4  # so small in the picture that it asks for as much padding as there can be
    check(AugmentPipe.apply(images, Augmentation(far, drawn.color))[1:], together[1:])
    for rank in range(3):
        share = slice(rank, None, 3)
        check(AugmentPipe.apply(images[share], drawn.take(share)), together[share])
    order = torch.randperm(12, generator=_rng())
    check(AugmentPipe.apply(images[order], drawn.take(order)), together[order])
    # In float32 only the rounding of positions knows of the padding.
    single = AugmentPipe.apply(images.float(), Augmentation(far, drawn.color))[1:]
    torch.testing.assert_close(single.double(), together[1:], rtol=0, atol=2e-4)


def test_derivatives() -> None:
    pipe = AugmentPipe()
    drawn = pipe.draw(2, 4, 1.0, _rng())
    drawn.geometry[1] = torch.eye(3)  # beside an image that is not moved
    images = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: pipe.apply(x, drawn), images)
    assert torch.autograd.gradgradcheck(lambda x: pipe.apply(x, drawn), images)


def test_gradient_penalty_through_augmented_reals() -> None:
    """R1 of a quadratic critic: ∇ₓ Σ (Ax)²·c = 2 Aᵀ(c ⊙ Ax), whose squared norm has the c-gradient 8 Ax ⊙ A(Aᵀ(c ⊙ Ax))."""
    size, pipe = 8, AugmentPipe()
    drawn = pipe.draw(1, size, 1.0, _rng(4))
    drawn.color[:, :3, 3] = 0  # a linear map, then
    one_hot = torch.eye(3 * size**2, dtype=torch.float64).view(-1, 3, size, size)
    rows = drawn.take(torch.zeros(len(one_hot), dtype=torch.long))
    A = pipe.apply(one_hot, rows).flatten(1).T
    x = torch.randn(1, 3, size, size, dtype=torch.float64, requires_grad=True)
    c = torch.randn(3 * size**2, dtype=torch.float64, requires_grad=True)
    value = (pipe.apply(x, drawn).flatten().square() * c).sum()
    (slope,) = torch.autograd.grad(value, x, create_graph=True)
    (found,) = torch.autograd.grad(slope.square().sum(), c)
    Ax = A @ x.detach().flatten()
    torch.testing.assert_close(found, 8 * Ax * (A @ (A.T @ (c.detach() * Ax))), rtol=1e-9, atol=1e-9)


def test_autocast_and_low_precision_change_nothing() -> None:
    images = torch.rand(4, 3, 16, 16, generator=_rng())
    drawn = AugmentPipe().draw(4, 16, 1.0, _rng())
    exact = AugmentPipe.apply(images, drawn)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(AugmentPipe.apply(images, drawn), exact)
    low = AugmentPipe.apply(images.bfloat16(), drawn)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, exact, rtol=0.05, atol=0.05)


def test_mismatches_are_errors() -> None:
    drawn = AugmentPipe().draw(3, 16, 1.0, _rng())
    with pytest.raises(ValueError, match="2 images"):
        AugmentPipe.apply(torch.zeros(2, 3, 16, 16), drawn)
    with pytest.raises(ValueError, match="square"):
        AugmentPipe.apply(torch.zeros(3, 3, 16, 8), drawn)


@pytest.mark.parametrize("ada_kimg", [ADA_KIMG, 100])
def test_p_goes_from_zero_to_one_in_ada_kimg(ada_kimg: float) -> None:
    control, batch = AdaptiveP(ada_kimg=ada_kimg), 50
    for step in range(1, int(ada_kimg * 1000) // batch + 1):
        control.observe(batch, batch)
        assert control.p == pytest.approx(step // 4 * 4 * batch / (ada_kimg * 1000), abs=1e-9)
    assert control.p == pytest.approx(1, abs=1e-9)


def test_p_holds_where_the_discriminator_answers_to_it() -> None:
    """A discriminator whose mean sign falls with p is led to the p at which that mean is the target, from either side."""
    for start in (0.0, 0.9):
        control = AdaptiveP(ada_kimg=10, p=start)
        for _ in range(1000):
            control.observe(32 * (0.9 - 0.6 * control.p), 32)
        assert control.p == pytest.approx(0.5, abs=2 * 4 * 32 / 10_000)


def test_p_falls_to_zero_and_no_further_holds_at_target_and_may_exceed_one() -> None:
    control = AdaptiveP(p=0.0015)
    falling = []
    for _ in range(24):
        control.observe(32 * 0.5, 32)
        falling.append(control.p)
    assert falling[2] == 0.0015  # the interval is not over
    assert falling[3] == pytest.approx(0.0015 - 128 / 500_000)
    assert falling[-1] == 0
    still = AdaptiveP(target=0.5, p=0.2)
    for signs in (32, 0, 16, 16):  # what counts is the mean of the interval
        still.observe(signs, 32)
    assert still.p == 0.2
    over = AdaptiveP(interval=1, p=1.0)
    over.observe(32, 32)
    assert over.p > 1


def test_resuming_within_an_interval_is_exact() -> None:
    signs = torch.randint(14, 27, (50,), generator=_rng()).tolist()
    whole, first = AdaptiveP(interval=4), AdaptiveP(interval=4)
    for s in signs:
        whole.observe(s, 32)
    for s in signs[:22]:
        first.observe(s, 32)
    state = first.state_dict()
    assert all(isinstance(value, (int, float)) for value in state.values())
    second = AdaptiveP(interval=4)
    second.load_state_dict(state)
    for s in signs[22:]:
        second.observe(s, 32)
    assert second.state_dict() == whole.state_dict()
    assert whole.p > 0
