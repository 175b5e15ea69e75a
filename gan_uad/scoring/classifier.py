"""Scores of a trained classifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gan_uad.checkpoint import load_weights
from gan_uad.errors import UserError
from gan_uad.metrics.detection import classification_report
from gan_uad.networks.classifier import Classifier
from gan_uad.registry import register
from gan_uad.scoring.base import Scorer, Scores
from gan_uad.scoring.grad_cam import enlarged, grad_cam


@register("classifier", kind="scorer")
class ClassifierScorer(Scorer):
    """The logit of "anomalous": log P(anomalous) − log P(normal), which is above 0 where the classifier says so.

    The network is trained already; `fit` only keeps the scores of validation normals. Maps are Grad-CAM of the network's last feature
    maps, which are coarse (2×2 at 64 px with DenseNet121 and the EfficientNets). No reconstructions.
    """

    log_odds = True

    def __init__(self, nets: dict[str, Any], device: torch.device) -> None:
        if "classifier" not in nets:
            raise UserError(f"the scorer classifier needs a trained classifier, not {', '.join(nets)}")
        self.net, self.device = nets["classifier"], device
        self.resolution = self.net.resolution

    @torch.no_grad()
    def score_batch(self, images: Tensor) -> Scores:
        images = images.to(self.device, memory_format=torch.channels_last)
        if not isinstance(self.net, Classifier):  # from another package: only its logits are known
            logits = self.net(images).float().cpu()
            return Scores(logits[:, 1] - logits[:, 0])
        scores, heat = grad_cam(self.net.decide, self.net.maps(images))
        return Scores(scores.cpu(), map=enlarged(heat, self.net.resolution).cpu())

    def compare(self, images: Tensor, labels: Tensor | None = None) -> dict[str, float]:
        """Accuracy on a labelled set with its 95 % Wilson interval, sensitivity and specificity; images of label −1 are left out."""
        if labels is None or not bool((labels >= 0).any()):
            raise UserError("a classifier is compared by its accuracy, which needs labelled images")
        known = labels >= 0
        return accuracy_metrics(labels[known], self.score(images[known]).image)

    def tensors(self) -> dict[str, Tensor]:
        """The weights of the network."""
        return dict(self.net.state_dict())

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        load_weights(self.net, tensors, "the fitted scorer")


def accuracy_metrics(labels: Tensor, scores: Tensor) -> dict[str, float]:
    """Metrics of the decision score > 0, for labels `[N]` of 0 and 1."""
    report = classification_report(labels.numpy(), (scores > 0).numpy())
    low, high = report["wilson"]["accuracy"]
    metrics = {"accuracy": report["accuracy"], "accuracy_low": low, "accuracy_high": high}
    return metrics | {key: report[key] for key in ("sensitivity", "specificity")} | {"n": len(labels)}
