"""StyleGAN2's training task: what a step does, exact resume, micro-batches, augmentation, precision."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor

from gan_uad import registry
from gan_uad.errors import UserError
from gan_uad.training import distributed
from gan_uad.training.adversarial import diversity, guard_gradients
from gan_uad.training.stylegan2 import StyleGAN2Task

pytestmark = pytest.mark.numerical

NETWORK = {"resolution": 16, "z_dim": 8, "w_dim": 8, "mapping_layers": 2, "channel_base": 128, "channel_max": 16}
BATCH = 8


def make(seed: int = 0, network: dict[str, Any] | None = None, **optim: Any) -> Any:
    torch.manual_seed(seed)
    model = registry.build("network", "stylegan2", NETWORK | (network or {}))
    return registry.build("task", "stylegan2", optim, model=model, device=torch.device("cpu"), seed=seed)


def batch(step: int = 0) -> Tensor:
    return torch.rand(BATCH, 3, 16, 16, generator=torch.Generator().manual_seed(step)) * 2 - 1


def steps(task: StyleGAN2Task, first: int, last: int) -> list[dict[str, Tensor]]:
    return [task.step(batch(i), i * BATCH) for i in range(first, last)]


def weights(task: StyleGAN2Task) -> list[Tensor]:
    nets = (task.G, task.D, task.ema.net)
    return [t.detach().clone() for net in nets for t in (*net.parameters(), *net.buffers())]


def test_regularisers_come_when_they_are_due() -> None:
    found = steps(make(r1_interval=3, path_interval=2), 0, 5)
    assert [i for i, metrics in enumerate(found) if "r1" in metrics] == [0, 3]
    assert [i for i, metrics in enumerate(found) if "path_length" in metrics] == [0, 2, 4]
    none = steps(make(r1_gamma=0.0, path_weight=0.0), 0, 1)[0]
    assert "r1" not in none
    assert "path_length" not in none


def test_lazy_regularisation_corrects_the_optimiser() -> None:
    task = make(lr=0.01, betas=[0.0, 0.99], r1_interval=16, path_interval=4)
    (G,), (D,) = task.opt_G.param_groups, task.opt_D.param_groups
    assert (G["lr"], G["betas"][1]) == pytest.approx((0.01 * 4 / 5, 0.99 ** (4 / 5)))
    assert (D["lr"], D["betas"][1]) == pytest.approx((0.01 * 16 / 17, 0.99 ** (16 / 17)))
    plain = make(lr=0.01, path_weight=0.0)
    assert plain.opt_G.param_groups[0]["lr"] == 0.01


def test_r1_gamma_follows_resolution_and_batch() -> None:
    """With γ = 0.0002 · 16² / 8 given by hand, the weights are those of the heuristic; with another they are not."""
    made = {}
    for gamma in (None, 0.0002 * 16**2 / BATCH, 10.0):
        task = make(r1_gamma=gamma)
        steps(task, 0, 1)
        made[gamma] = torch.cat([p.flatten() for p in task.D.parameters()])
    heuristic, same, other = made.values()
    assert torch.equal(heuristic, same)
    assert not torch.equal(heuristic, other)


@pytest.mark.parametrize("optim", [{}, {"augment": "bgc", "ada_kimg": 0.1, "ada_target": -1.0}])
def test_a_resumed_task_is_the_same_bit_for_bit(optim: dict[str, Any]) -> None:
    """Saved in the middle of the intervals of R1, path length and ADA, and resumed beyond the next of each."""
    optim = optim | {"r1_interval": 4, "path_interval": 4}
    whole = make(**optim)
    steps(whole, 0, 2)
    buffer = io.BytesIO()
    torch.save(whole.state_dict(), buffer)
    steps(whole, 2, 5)
    buffer.seek(0)
    resumed = make(seed=1, **optim)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    steps(resumed, 2, 5)
    assert all(map(torch.equal, weights(whole), weights(resumed)))
    assert torch.equal(whole.path_mean, resumed.path_mean)
    assert whole.ada.p == resumed.ada.p


def test_micro_batches_give_the_whole_batch_s_weights() -> None:
    """The minibatch-stddev groups, the path length and the noise are those of the whole batch (double precision, 1e-9)."""
    found = []
    for micro_batch in (None, 4):
        task = make(mixing=1.0, augment="bg", augment_p=0.5)
        for net in (task.G, task.D, task.ema.net):
            net.double()
        task.path_mean = task.path_mean.double()
        task.normal = lambda *what, task=task: [x.double() for x in StyleGAN2Task.normal(task, *what)]
        task.draw_z = lambda count, task=task: StyleGAN2Task.draw_z(task, count).double()
        task.micro_batch = micro_batch
        for i in range(2):
            task.step(batch(i).double(), i * BATCH)
        found.append(weights(task))
    for whole, parts in zip(*found, strict=True):
        assert torch.allclose(whole.double(), parts.double(), rtol=1e-9, atol=1e-9)


def test_lazy_regularisers_are_weighted_by_their_intervals() -> None:
    """Path length: weight · interval, on half the batch; R1: γ/2 · interval, on all of it."""
    task = make(r1_gamma=3.0, r1_interval=16, path_weight=2.0, path_interval=4)
    seen: list[tuple[int, Tensor, dict[str, Tensor]]] = []

    def noted(optimizer: Any, count: int, loss: Any) -> dict[str, Tensor]:
        value, metrics = loss(slice(None))
        seen.append((count, value, metrics))
        return {name: metric.detach() for name, metric in metrics.items()}

    task.optimise = noted
    task.step(batch(), 0)
    assert [count for count, _, _ in seen] == [BATCH, BATCH // 2, BATCH, BATCH]
    (_, path, of_path), (_, r1, of_r1) = seen[1], seen[3]
    assert float(path.detach()) == pytest.approx(float(of_path["path_penalty"].detach()) * 2.0 * 4)
    assert float(r1.detach()) == pytest.approx(float(of_r1["r1"].detach()) * 3.0 / 2 * 16)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("shrink", [1, 2, 3, 4])
def test_path_batches_of_several_processes(monkeypatch: pytest.MonkeyPatch, size: int, shrink: int) -> None:
    """All together look at as many images as one process, rounded down to equal shares of at least one image."""
    whole = 12 // shrink
    monkeypatch.setattr(distributed, "world", lambda: distributed.World(0, size))
    task = make(path_shrink=shrink)
    seen: list[int] = []
    task.generator_step = task.discriminator_step = task.r1_step = lambda _: {}
    task.path_step = lambda count: seen.append(count) or {}
    task.step(torch.zeros(12 // size, 3, 16, 16), 0)
    assert seen == [max(1, whole // size)]
    if whole % size == 0:
        assert seen[0] * size == whole


def test_path_mean_and_w_avg_are_running_means() -> None:
    task = make()
    metrics = task.step(batch(), 0)
    assert float(task.path_mean) == pytest.approx(0.01 * float(metrics["path_length"]), rel=1e-5)
    task = make(lr=0.1)
    # Of the z that the first generator step draws, before that step moves the mapping network.
    w = task.G.mapping(make().draw_z(BATCH))
    task.step(batch(), 0)
    torch.testing.assert_close(task.G.mapping.w_avg, 0.005 * w.mean(0), rtol=1e-4, atol=1e-8)
    assert torch.equal(task.ema.net.mapping.w_avg, task.G.mapping.w_avg)  # copied, not averaged


def test_style_mixing_gives_later_layers_another_w() -> None:
    task = make(mixing=1.0)
    latents = task.draw(3)
    ws, crossover = latents.ws(task.G, slice(None)), latents.crossover
    assert 1 <= crossover < ws.shape[1]
    assert torch.equal(ws[:, 0], ws[:, crossover - 1])
    assert not torch.allclose(ws[:, 0], ws[:, crossover])
    assert torch.allclose(ws[:, crossover], task.G.mapping(latents.z_mixed))
    assert make(mixing=0.0).draw(3).z_mixed is None
    assert {task.draw(1).crossover for _ in range(50)} == set(range(1, ws.shape[1]))


def test_every_image_has_noise_of_its_own() -> None:
    """In training and in pictures: of equal latents two images differ by their noise only."""
    task = make(mixing=0.0)
    with torch.no_grad():
        for net in (task.G, task.ema.net):
            for layer in net.synthesis.layers:
                layer.noise_strength.fill_(1.0)
    latents = task.draw(2)
    latents.z = latents.z[:1].expand(2, -1)
    made = task.make(latents, slice(None))
    assert float((made[0] - made[1]).detach().abs().mean()) > 0.01
    assert all(not torch.equal(a, b) for a, b in zip(latents.noise, task.draw(2).noise, strict=True))
    for weights in task.ema.net.mapping.parameters():
        weights.detach().zero_()  # one w for all
    shown = task.sample()
    assert all(float((shown[i] - shown[j]).abs().mean()) > 0.01 for i in range(6) for j in range(i))
    assert torch.equal(shown, task.sample())


def test_augmentation_follows_the_signs_of_real_images() -> None:
    """A target below what D says makes p rise; one above lets it stay at 0. D sees the altered images."""
    rising, resting = (make(augment="bg", ada_target=target, ada_kimg=0.1) for target in (-1.5, 1.5))
    for task in (rising, resting):
        metrics = steps(task, 0, 4)
    assert float(metrics[-1]["ada_p"]) == 0
    assert rising.ada.p == pytest.approx(4 * BATCH / 100)
    seen: list[tuple[float, int]] = []
    resting.ada.observe = lambda sign, count: seen.append((sign, count))
    last = resting.step(batch(), 0)
    assert float(last["real_sign"]) != float(last["fake_sign"])
    assert seen == [(pytest.approx(float(last["real_sign"]) * BATCH), BATCH)]
    plain, altered = make(), make(augment="b", augment_p=1.0)
    for task in (plain, altered):
        steps(task, 0, 1)
    assert not torch.equal(plain.D.from_rgb.weight, altered.D.from_rgb.weight)


def test_every_image_that_d_sees_is_augmented() -> None:
    """Generated ones too, in the generator's step as well: otherwise the generator learns to make altered images."""
    task = make(augment="bgc", augment_p=1.0)
    task.pipe.apply = lambda images, drawn: images * 0.0 + 7.0
    seen_images: list[Tensor] = []
    task.D.register_forward_pre_hook(lambda net, inputs: seen_images.append(inputs[0].detach()))
    task.step(batch(), 0)
    assert len(seen_images) == 4  # generator's step, generated images, real images, R1
    assert all(bool((images == 7).all()) for images in seen_images)


def test_r1_sees_through_the_augmentation() -> None:
    """The slope is that with respect to the images before they are altered: brightness ×0 would give a penalty of 0."""
    task = make(augment="c", augment_p=1.0)
    task.pipe.apply = lambda images, drawn: images * 0.0
    assert float(task.r1_step(batch())["r1"]) == 0
    assert float(make().r1_step(batch())["r1"]) > 0


def test_bf16_tracks_fp32() -> None:
    """Losses of the same steps; only the top resolutions are in low precision."""
    found = []
    for enabled in (False, True):
        task = make(network={"low_precision_levels": 2})
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append([float(metrics["loss_D"]) for metrics in steps(task, 0, 2)])
        assert all(p.dtype == torch.float32 for p in task.G.parameters())
    assert found[0] != found[1]
    assert found[1] == pytest.approx(found[0], rel=0.05)


def test_gradients_are_guarded_and_not_clipped() -> None:
    p = torch.nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([p], lr=1.0)
    optimizer.register_step_pre_hook(guard_gradients)
    p.grad = torch.tensor([float("nan"), float("inf"), float("-inf"), 3e7])
    optimizer.step()
    assert p.tolist() == [0.0, -1e5, 1e5, -3e7]


def test_diversity() -> None:
    real = batch()
    assert float(diversity(real, real)) == pytest.approx(1)
    assert float(diversity(real[:1].expand(BATCH, -1, -1, -1), real)) == pytest.approx(0, abs=1e-6)
    assert float(diversity(real[:1], real)) == 1


def test_learning_makes_the_mean_colour_right() -> None:
    """Images of one colour: after a short training the samples have it."""
    task = make(lr=0.01, ema_kimg=0.1, path_weight=0.0)
    colour = torch.tensor([0.6, -0.4, 0.2]).view(1, 3, 1, 1)
    before = float((task.sample().mean((0, 2, 3)) - colour.flatten()).abs().max())
    for i in range(25):
        task.step(colour.expand(BATCH, 3, 16, 16) + 0.1 * batch(i), i * BATCH)
    after = float((task.sample().mean((0, 2, 3)) - colour.flatten()).abs().max())
    assert after < 0.25 < before


@pytest.mark.parametrize(
    ("optim", "words"),
    [
        ({"mixing": 2.0}, "mixing in"),
        ({"path_shrink": 0}, "path_shrink"),
        ({"r1_gamma": -1.0}, "r1_gamma and path_weight must not be negative"),
        ({"path_weight": -2.0}, "r1_gamma and path_weight must not be negative"),
        ({"path_decay": 3.0}, "path_decay in"),
        ({"augment": "bgq"}, "unknown augmentations"),
        ({"augment": "bgc", "augment_p": 1.5}, "augment_p must be in"),
        ({"augment_p": 0.5}, "augment_p"),
    ],
)
def test_bad_options_are_one_line(optim: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make(**optim)
