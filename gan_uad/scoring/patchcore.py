"""PatchCore: a memory of patches of normal images, as the middle layers of a network see them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_uad.errors import UserError
from gan_uad.features.base import FeatureNet
from gan_uad.features.pixels import resized
from gan_uad.features.weights import EMBEDDED
from gan_uad.metrics.coreset import OVERHEAD, Reservoir, k_center
from gan_uad.registry import register
from gan_uad.scoring.base import Scores, padded
from gan_uad.scoring.features import FeatureScorer, at_least, choice

SIDE = 224  # px that images are resized to where the network sets none
ROWS = 2048  # patches whose distances to the memory are computed at once


@register("patchcore", kind="scorer")
class PatchCore(FeatureScorer):
    """Distance of an image's patches to the nearest patches of normal images: PatchCore (Roth et al. 2022).

    A patch is a place of the network's maps at 1/8 and 1/16 of the image's side (`strides`). Each map is averaged over 3 × 3 places (at
    the border over the existing ones); the coarser ones are interpolated bilinearly to the finest, and all are concatenated (section 3.1).
    The memory is a greedy k-centre coreset (section 3.2). The score is the largest distance of a patch to its nearest one in memory; the
    map shows these distances, interpolated and smoothed (section 3.3). Components: `max` and `mean` of the distances.

    Differences from the paper: the coreset is chosen from a uniform sample of all patches, so that memory is bounded for any number of
    images; channels are neither averaged nor projected to fewer; the networks are those of this package.
    """

    micro_batch = 16
    name = "patchcore"

    def __init__(
        self,
        features: str = EMBEDDED,
        strides: tuple[int, ...] = (8, 16),
        memory_mb: float = 32.0,
        max_patches: int = 4096,
        reduce: str = "max",
        reweight: int = 0,
        sigma: float = 4.0,
        seed: int = 0,
        *,
        net: FeatureNet | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """`features`: a network with maps; images are resized to its side. `strides`: which maps, the last of each stride.

        `memory_mb`: MiB (2²⁰ bytes) for patches in the fit: the memory and the sample that it is chosen from. More gives a larger sample,
        and the fit takes longer in proportion. `max_patches`: size of the memory; scoring time grows in proportion. `reduce`: max (the
        paper's) or mean (for weak anomalies everywhere rather than a strong one somewhere); both are components. `reweight`: neighbours b
        of the weight of the maximum (eq. 7), 9 in later implementations; 0: no weight. `sigma`: of the Gaussian that smooths the map, in
        px of the network's side; 0: not smoothed. `seed`: of the sample.
        """
        at_least(max_patches, 1, "max_patches")
        choice(reduce, ("max", "mean"), "reduce")
        if not 0 < memory_mb < float("inf"):
            raise ValueError(f"memory_mb must be above 0, not {memory_mb}")
        at_least(sigma, 0, "sigma")
        at_least(seed, 0, "seed")
        if reweight < 0 or reweight == 1 or reweight > max_patches:
            raise ValueError(
                f"reweight must be 0 (none) or from 2 to max_patches ({max_patches}) neighbours, not {reweight}"
            )
        super().__init__(features, net=net, device=device)
        self.side: int = getattr(self.net, "side", SIDE)
        self.strides, self.max_patches, self.sigma, self.seed = strides, max_patches, sigma, seed
        self.reduce, self.reweight = reduce, reweight
        self.dim = self._patches(torch.zeros(1, 3, self.side, self.side)).shape[1]
        size = 4 * self.dim
        self.sample = int((memory_mb * 2**20 - max_patches * size) // (size + OVERHEAD))
        if self.sample < max_patches:
            least = max_patches * (2 * size + OVERHEAD) / 2**20
            raise ValueError(
                f"memory_mb {memory_mb:g} does not hold a sample of {max_patches} patches of {self.dim} numbers and as many chosen ones: "
                f"set memory_mb to at least {least:.1f}, or fewer max_patches"
            )
        self._memory: Tensor | None = None

    @property
    def memory(self) -> Tensor:
        """The patches of the coreset, `[M, dim]`; raises `UserError` before `fit`."""
        if self._memory is None:
            raise self.not_fitted()
        return self._memory

    def fit_normals(self, train: Iterator[Tensor]) -> None:
        """Sample patches, and choose the memory among them."""
        reservoir = Reservoir(self.sample, self.dim, self.seed)
        count = 0
        for images in train:
            count += len(images)
            for chunk in images.split(self.micro_batch):
                rows = _rows(self._patches(padded(chunk, self.micro_batch))[: len(chunk)])
                self.check_finite(bool(rows.isfinite().all()))
                reservoir.update(rows.cpu().numpy())
        self.check_count(count, 1)
        chosen = k_center(reservoir.sample, min(self.max_patches, reservoir.held), reservoir.first)
        if len(chosen) < self.reweight:
            raise UserError(
                f"the {self.name} scorer found {len(chosen)} different patches in the normal images, and reweight asks for "
                f"{self.reweight} neighbours: fit on more images, or without reweight"
            )
        self._memory = torch.from_numpy(reservoir.sample[chosen]).to(self.device)

    @torch.inference_mode()
    def score_batch(self, images: Tensor) -> Scores:
        """See `Scorer`. The map is at the images' own side."""
        patches = self._patches(images)
        n, _, h, w = patches.shape
        rows = _rows(patches)
        self.check_finite(bool(rows.isfinite().all()))
        distance, index = self._nearest(rows)
        largest, place = distance.view(n, -1).max(1)
        if self.reweight:
            largest = largest * self._weight(
                rows.view(n, h * w, -1)[torch.arange(n), place], index.view(n, -1)[torch.arange(n), place]
            )
        found = F.interpolate(distance.view(n, 1, h, w), (self.side,) * 2, mode="bilinear", align_corners=False)
        found = resized(_smooth(found, self.sigma), images.shape[-1])
        components = {"max": largest.cpu(), "mean": distance.view(n, -1).mean(1).cpu()}
        return Scores(components[self.reduce], components, found[:, 0].cpu())

    @torch.inference_mode()
    def _patches(self, images: Tensor) -> Tensor:
        """`[N, 3, H, W]` in [-1, 1] -> `[N, dim, h, w]`."""
        try:
            maps = self.net.maps(resized(images.to(self.device, torch.float32), self.side))
        except NotImplementedError:
            raise ValueError(
                f"the features {self.features} have one vector per image and no maps: use a network with maps"
            ) from None
        chosen = []
        for stride in self.strides:
            fitting = [m for m in maps if round(self.side / m.shape[-1]) == stride]
            if not fitting:
                known = ", ".join(str(round(self.side / m.shape[-1])) for m in maps)
                raise ValueError(f"{self.features} has no maps of stride {stride}; it has {known}")
            chosen.append(F.avg_pool2d(fitting[-1], 3, 1, 1, count_include_pad=False))
        if not chosen:
            raise ValueError("strides must name at least one map")
        finest = max(m.shape[-1] for m in chosen)
        return torch.cat(
            [F.interpolate(m, (finest, finest), mode="bilinear", align_corners=False) for m in chosen], dim=1
        )

    def _nearest(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Distance `[R]` of patches `[R, dim]` to the nearest ones in memory, and the numbers of these."""
        memory = self.memory
        lengths = memory.square().sum(1)
        # ‖m‖² − 2 x·m has the same minimum as the distance; that itself is computed without cancelling.
        index = torch.cat([torch.addmm(lengths, some, memory.T, alpha=-2).argmin(1) for some in rows.split(ROWS)])
        distance = torch.cat(
            [(a - memory[b]).norm(dim=1) for a, b in zip(rows.split(ROWS), index.split(ROWS), strict=True)]
        )
        return distance, index

    def _weight(self, patch: Tensor, nearest: Tensor) -> Tensor:
        """Roth et al. 2022, eq. 7: 1 − exp ‖x − m*‖ / Σ exp ‖x − m‖ over the b patches m in memory that are nearest to m*, itself one.

        `patch` `[N, dim]`: the one of the largest distance; `nearest` `[N]`: the number of m*.
        """
        memory = self.memory
        between = torch.cdist(memory[nearest], memory, compute_mode="donot_use_mm_for_euclid_dist")
        around = between.topk(self.reweight, largest=False, sorted=True).indices
        away = (patch[:, None] - memory[around]).norm(dim=2)
        own = (patch - memory[nearest]).norm(dim=1)
        return 1 - (own - away.logsumexp(1)).exp()

    def tensors(self) -> dict[str, Tensor]:
        """The memory, and the features that it is of."""
        return super().tensors() | {"memory": self.memory}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        super().load_tensors(tensors)
        self._memory = tensors["memory"].to(self.device)


def _rows(patches: Tensor) -> Tensor:
    """`[N, dim, h, w]` -> `[N · h · w, dim]`."""
    return patches.permute(0, 2, 3, 1).reshape(-1, patches.shape[1])


def _smooth(maps: Tensor, sigma: float) -> Tensor:
    """Smooth maps `[N, 1, H, W]` by a Gaussian, cut at four deviations; the border values extend beyond the border."""
    reach = min(round(4 * sigma), maps.shape[-1] - 1)
    if reach < 1:
        return maps
    at = torch.arange(-reach, reach + 1, dtype=maps.dtype, device=maps.device)
    kernel = (-0.5 * (at / sigma) ** 2).exp()
    kernel = kernel / kernel.sum()
    padded = F.pad(maps, (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
