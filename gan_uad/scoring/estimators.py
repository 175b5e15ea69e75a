"""The normal-only detectors of scikit-learn, on features."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gan_uad.console import say
from gan_uad.features.base import FeatureNet
from gan_uad.features.weights import EMBEDDED
from gan_uad.registry import register
from gan_uad.scoring.base import Scores
from gan_uad.scoring.features import StoredNormals, as_bytes, as_text, at_least, choice


class EstimatorScorer(StoredNormals):
    """An estimator of scikit-learn, kept as the features that it is fitted on, and fitted again when it is loaded.

    Nothing is pickled: the features, the options and the version of scikit-learn give the same estimator again. Its memory is that of
    the features, float32 and float64.
    """

    least = 2
    _estimator: Any = None

    @abstractmethod
    def estimator(self, count: int) -> Any:
        """A new estimator for so many images."""

    def anomaly(self, vectors: NDArray[np.float64]) -> NDArray[np.floating[Any]]:
        """Score `[n]` of features `[n, dim]`, higher = more anomalous: minus the score of scikit-learn."""
        return -np.asarray(self._estimator.score_samples(vectors))

    def set_normals(self, normals: NDArray[np.float32]) -> None:
        super().set_normals(normals)
        self._estimator = self.estimator(len(normals)).fit(normals.astype(np.float64))

    def score_batch(self, images: Tensor) -> Scores:
        if self._estimator is None:
            raise self.not_fitted()
        scores = self.anomaly(self.vectors(images).astype(np.float64))
        return Scores(torch.from_numpy(np.asarray(scores, np.float32)))

    def tensors(self) -> dict[str, Tensor]:
        """The features, which they are, and the version of scikit-learn."""
        import sklearn

        return super().tensors() | {"scikit_learn": as_bytes(sklearn.__version__)}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """See `FeatureScorer`. Prints a note where the version of scikit-learn is not that of the fit."""
        import sklearn

        version = as_text(tensors["scikit_learn"])
        if version != sklearn.__version__:
            say(
                f"note: the {self.name} scorer was fitted by scikit-learn {version} and is fitted again by {sklearn.__version__}: "
                "scores and thresholds from before may differ"
            )
        super().load_tensors(tensors)


@register("one_class_svm", kind="scorer")
class OneClassSVMScorer(EstimatorScorer):
    """One-class support vector machine with a Gaussian kernel: how far outside its boundary an image lies (inside: negative).

    Time of the fit grows with the square of the number of images. Source: Schölkopf et al. 2001.
    """

    name = "one_class_svm"

    def __init__(
        self,
        features: str = EMBEDDED,
        nu: float = 0.1,
        gamma: float | None = None,
        *,
        net: FeatureNet | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """`nu`: about the share of normal images left outside, in (0, 1]. `gamma`: of the kernel exp(−gamma ‖x − y‖²), by default one
        over the number of features and their variance."""
        if not 0 < nu <= 1:
            raise ValueError(f"nu must be above 0 and at most 1, not {nu}")
        if gamma is not None and not 0 < gamma < float("inf"):
            raise ValueError(f"gamma must be above 0, not {gamma}")
        super().__init__(features, net=net, device=device)
        self.nu, self.gamma = nu, gamma

    def estimator(self, count: int) -> Any:
        from sklearn.svm import OneClassSVM

        return OneClassSVM(nu=self.nu, gamma="scale" if self.gamma is None else self.gamma)

    def anomaly(self, vectors: NDArray[np.float64]) -> NDArray[np.floating[Any]]:
        """Minus the decision function."""
        return -np.asarray(self._estimator.decision_function(vectors))


@register("isolation_forest", kind="scorer")
class IsolationForestScorer(EstimatorScorer):
    """Isolation forest: how few random cuts set an image apart, in (0, 1], about ½ for one like all others.

    Source: Liu, Ting & Zhou 2008, eq. 2.
    """

    name = "isolation_forest"

    def __init__(
        self,
        features: str = EMBEDDED,
        trees: int = 200,
        samples: int = 256,
        seed: int = 0,
        *,
        net: FeatureNet | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """`trees`: how many. `samples`: images a tree is grown on (all, where they are fewer). `seed`: of images and cuts."""
        at_least(trees, 1, "trees")
        at_least(samples, 2, "samples")
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed must be from 0 to 2**32 - 1, not {seed}")
        super().__init__(features, net=net, device=device)
        self.trees, self.samples, self.seed = trees, samples, seed

    def estimator(self, count: int) -> Any:
        from sklearn.ensemble import IsolationForest

        return IsolationForest(n_estimators=self.trees, max_samples=min(self.samples, count), random_state=self.seed)


@register("local_outlier_factor", kind="scorer")
class LocalOutlierFactorScorer(EstimatorScorer):
    """Local outlier factor: how much sparser normal images lie around an image than around its k neighbours; about 1 if it is like them.

    Among more than k equal normal images the density has no bound, and the factor of other images is huge. Source: Breunig et al. 2000.
    """

    name = "local_outlier_factor"

    def __init__(
        self,
        features: str = EMBEDDED,
        k: int = 20,
        metric: str = "euclidean",
        *,
        net: FeatureNet | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """`k`: neighbours; more of them smooth the density. `metric`: euclidean or cosine."""
        at_least(k, 1, "k")
        choice(metric, ("cosine", "euclidean"), "metric")
        super().__init__(features, net=net, device=device)
        self.k, self.metric = k, metric
        self.least, self.why = k + 1, f" with k = {k}"

    def estimator(self, count: int) -> Any:
        from sklearn.neighbors import LocalOutlierFactor

        return LocalOutlierFactor(n_neighbors=self.k, metric=self.metric, algorithm="brute", novelty=True)
