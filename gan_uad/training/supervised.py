"""Training a classifier on labelled patches."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gan_uad import console
from gan_uad.data.patches import LabelledStream, PatchSet
from gan_uad.errors import UserError
from gan_uad.features import weights
from gan_uad.metrics.detection import auroc
from gan_uad.registry import register
from gan_uad.training import distributed
from gan_uad.training.augment import Augmentation, AugmentPipe
from gan_uad.training.jitter import Jitter
from gan_uad.training.single import SingleTask, evaluating
from gan_uad.training.validation import per_image

OPTIMISERS: dict[str, Any] = {
    "adamw": partial(torch.optim.AdamW, fused=True),
    "adam": partial(torch.optim.Adam, fused=True),
    "adamax": torch.optim.Adamax,
}
N_EXAMPLES = 64  # images of a snapshot


@register("supervised", kind="task")
class SupervisedTask(SingleTask):
    """Cross-entropy of a network with two logits (normal, anomalous), validated on validation images.

    schedule: "none"; "cosine": the rate falls from `lr` to 0 over a period; "step": it is multiplied by `lr_decay` after every period;
    "cyclical": in every period it rises linearly from `lr`·`lr_decay` to `lr` and falls back (the triangular policy of Smith 2017). The
    period is `schedule_kimg`, or `schedule_epochs` of the balanced images. balance: how to treat classes of unequal size; "oversample"
    and "undersample" are those of `LabelledStream`; "weight" multiplies the loss of an image by the inverse of its class's share.
    augment: strength of random changes of brightness, contrast, saturation, scale, aspect and position; 0 is none, 1 is that of ADA
    (flips and quarter turns are settings of `data`). shift, zoom, shear, rotation, brightness: instead, bounds of uniform changes (see
    `Jitter`). init: "imagenet" starts from torchvision's weights (see `features.weights`), and is an error without them. best_by: the
    validation metric that decides which model is best.
    """

    role = "classifier"
    states = frozenset({"lr"})
    curves = {"loss": "val_loss", "accuracy": "val_accuracy"}

    def __init__(
        self,
        model: Any,
        device: torch.device,
        seed: int,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        optimizer: Literal["adamw", "adam", "adamax"] = "adamw",
        schedule: Literal["none", "cosine", "step", "cyclical"] = "none",
        schedule_kimg: float | None = None,
        schedule_epochs: float | None = None,
        lr_decay: float = 0.1,
        balance: Literal["none", "oversample", "undersample", "weight"] = "none",
        label_smoothing: float = 0.0,
        augment: float = 0.0,
        shift: float = 0.0,
        zoom: float = 0.0,
        shear: float = 0.0,
        rotation: float = 0.0,
        brightness: float = 0.0,
        init: Literal["none", "imagenet"] = "none",
        best_by: Literal["val_loss", "val_accuracy", "val_auroc"] = "val_loss",
    ) -> None:
        if lr <= 0 or weight_decay < 0 or lr_decay <= 0:
            raise ValueError(f"need lr > 0, weight_decay >= 0, lr_decay > 0; got {lr}, {weight_decay}, {lr_decay}")
        periods = [given for given in (schedule_kimg, schedule_epochs) if given is not None]
        if len(periods) != (schedule != "none") or min(periods, default=1.0) <= 0:
            raise ValueError(
                "a schedule needs one positive period, schedule_kimg or schedule_epochs, and a period needs a schedule; "
                f"got {schedule}, {schedule_kimg}, {schedule_epochs}"
            )
        if not 0 <= label_smoothing < 1 or augment < 0:
            raise ValueError(f"need label_smoothing in [0, 1) and augment >= 0, got {label_smoothing} and {augment}")
        self.jitter = Jitter(shift, zoom, shear, rotation, brightness)
        if self.jitter and augment:
            raise ValueError("augment excludes shift, zoom, shear, rotation and brightness: use either")
        super().__init__(model, device, seed, OPTIMISERS[optimizer], lr=lr, weight_decay=weight_decay)
        self.lr, self.lr_decay, self.schedule, self.schedule_epochs = lr, lr_decay, schedule, schedule_epochs
        self.period = None if schedule_kimg is None else schedule_kimg * 1000  # in images
        self.balance, self.label_smoothing, self.augment, self.best_by = balance, label_smoothing, augment, best_by
        self.init = init
        # Without hue, which has a meaning in stained tissue, and without turns, which the stream makes.
        self.pipe = AugmentPipe("gc", rotate=0.0, hue=0.0, lumaflip=0.0)
        self.class_weights = torch.ones(2, device=device)

    def begin(self) -> None:
        """See `Task`. Raises `UserError` for ImageNet weights that are missing or do not fit, and for frozen random ones."""
        if self.init == "imagenet":
            start_from_imagenet(self.model)
        elif getattr(self.model, "frozen", False):
            raise UserError(
                "network.frozen would keep random weights: set optim.init=imagenet, or network.frozen=false"
            )

    def stream(self, patches: PatchSet, batch: int, seed: int, flips: bool, turns: bool) -> LabelledStream:
        """See `Task`: the labelled images, with their labels."""
        known = patches.take(np.flatnonzero(patches.manifest.label >= 0))
        if len(known) < len(patches):
            console.say(f"note: {len(patches) - len(known)} train images have no label and are left out")
        if not len(known):
            raise UserError(f"{patches.source}: no train image has a label, which a classifier needs")
        here = distributed.world()
        balance = "none" if self.balance == "weight" else self.balance
        stream = LabelledStream(known, batch, seed, flips, turns, here.rank, here.size, balance)
        if self.schedule_epochs is not None:
            self.period = self.schedule_epochs * stream.epoch
        if self.balance == "weight":
            counts = torch.from_numpy(np.bincount(known.manifest.label, minlength=2))
            self.class_weights = (len(known) / (2 * counts)).float().to(self.device)
        self.choose_examples(known, N_EXAMPLES, seed)
        return stream

    def validator(self, patches: PatchSet) -> ClassifierValidator:
        """See `Task`. Raises `UserError` unless there are validation images of both labels."""
        return ClassifierValidator(self, patches)

    def step(self, real: tuple[Tensor, Tensor], nimg: int) -> dict[str, Tensor]:
        """One step on images `[N, 3, R, R]` in [-1, 1] and labels `[N]` of 0 and 1."""
        images, labels = real
        for group in self.opt.param_groups:
            group["lr"] = self.lr_at(nimg)
        drawn = self.draw(self.batch_of(images), self.rng)
        changes = None if drawn is None else drawn.take(distributed.world().rows)

        def loss(part: slice) -> tuple[Tensor, dict[str, Tensor]]:
            shown = images[part] if changes is None else self.change(images[part], changes.take(part))
            logits = self.model(shown).float()
            each = F.cross_entropy(logits, labels[part], reduction="none", label_smoothing=self.label_smoothing)
            value = (each * self.class_weights[labels[part]]).mean()
            return value, {"loss": value, "accuracy": (logits.argmax(1) == labels[part]).float().mean()}

        metrics = self.optimise(self.opt, len(images), loss)
        return metrics | {"lr": torch.tensor(self.lr_at(nimg))}

    def lr_at(self, nimg: int) -> float:
        """Learning rate of the step that follows `nimg` images. `schedule_epochs` has an effect after `stream`, which sets the period."""
        if self.period is None:
            return self.lr
        periods = nimg / self.period
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * min(periods, 1))) / 2
        if self.schedule == "cyclical":
            up = 1 - abs(2 * (periods % 1) - 1)
            return self.lr * (self.lr_decay + (1 - self.lr_decay) * up)
        return float(self.lr * self.lr_decay ** int(periods))

    def draw(self, count: int, generator: torch.Generator) -> Augmentation | None:
        """Changes of `count` images: those of `jitter`, or ADA's with strength `augment`; None: no changes."""
        if self.jitter:
            return self.jitter.draw(count, generator)
        if not self.augment:
            return None
        drawn = self.pipe.draw(count, self.model.resolution, 1.0, generator)
        geometry, color = (torch.eye(size, dtype=torch.float64) for size in (3, 4))
        return Augmentation(geometry.lerp(drawn.geometry, self.augment), color.lerp(drawn.color, self.augment))

    def change(self, images: Tensor, changes: Augmentation) -> Tensor:
        """Images `[N, 3, R, R]` with the changes drawn for them."""
        return self.jitter.apply(images, changes) if self.jitter else self.pipe.apply(images, changes)

    def sample(self) -> Tensor:
        """Some train images as the network sees them, the same in every call."""
        changes = self.draw(len(self.examples), torch.Generator().manual_seed(0))
        return self.examples if changes is None else self.change(self.examples, changes)


class ClassifierValidator:
    """Validates a classifier: `val_loss` (cross-entropy), `val_accuracy` and `val_auroc` of validation images.

    If the task balances the classes, loss and accuracy are means of their values in the two classes. In float32, with the network in
    evaluation mode, as in scoring. Processes share the images.
    """

    def __init__(self, task: SupervisedTask, patches: PatchSet) -> None:
        self.task, self.larger = task, task.best_by != "val_loss"
        self.metric: str = task.best_by
        self.patches = patches.take(np.flatnonzero(patches.manifest.label >= 0))
        self.labels = torch.from_numpy(self.patches.manifest.label.astype(np.int64))
        for label, name in ((0, "normal"), (1, "anomalous")):
            if not bool((self.labels == label).any()):
                raise UserError(
                    f"{patches.source}: no {name} image among the {len(patches)} validation images: training.eval_kimg needs both"
                )

    def validate(self, nimg: int) -> dict[str, float]:
        """See `Validator`."""
        task = self.task
        with evaluating(task.model):
            logits = per_image(self.patches, task.device, 2, task.model).double()
        each = F.cross_entropy(logits, self.labels, reduction="none")
        right = (logits.argmax(1) == self.labels).double()
        score = (logits[:, 1] - logits[:, 0]).numpy()
        metrics = {"val_loss": self._mean(each), "val_accuracy": self._mean(right)}
        return metrics | {"val_auroc": auroc(self.labels.numpy(), score) if np.isfinite(score).all() else math.nan}

    def _mean(self, values: Tensor) -> float:
        if self.task.balance == "none":
            return float(values.mean())
        return float(sum(values[self.labels == label].mean() for label in (0, 1)) / 2)


def start_from_imagenet(model: Any) -> None:
    """Load the published ImageNet weights into a network's trunk. Raises `UserError` where there are none for it, or none are found."""
    name = getattr(model, "imagenet", None)
    if name is None:
        raise UserError("optim.init=imagenet: this network has no ImageNet weights; use optim.init=none")
    loaded = weights.load(name)
    trunk = copy.deepcopy(model.trunk)  # `put` makes new parameters; an optimiser may hold those of the model
    weights.put(trunk, model.trunk_weights(loaded.state), loaded.path, name)
    model.trunk.load_state_dict(trunk.state_dict())
    console.say(f"starting from {loaded.label}")
