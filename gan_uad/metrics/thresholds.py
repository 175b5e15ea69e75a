"""Rules that set a threshold without the test set, and what each of them guarantees.

A decision is always `score > threshold`, strictly: a score equal to the threshold is normal. So a conformal threshold keeps its
guarantee under ties.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gan_uad.metrics._inputs import FloatArray, IntArray, check_labels, check_scores, group_codes

# rule -> (its parameter, how the command line writes it)
RULES: dict[str, tuple[str | None, str]] = {
    "youden": (None, "youden"),
    "fpr": ("alpha", "fpr:ALPHA with 0 < ALPHA < 1, e.g. fpr:0.05"),
    "quantile": ("q", "quantile:Q with 0 < Q <= 1, e.g. quantile:0.99"),
    "mean_std": ("k", "mean_std:K, e.g. mean_std:3"),
    "manual": ("value", "manual:VALUE, e.g. manual:0.7"),
}
ROUNDING = 1e-9  # without it nine normals, whose weights add up to 0.8999..., could not guarantee alpha 0.1


@dataclass(frozen=True)
class Threshold:
    """A threshold, how it was set and what it guarantees.

    `value` is infinite where the rule cannot be met: then there is no threshold (`exists`), and metrics of decisions would mean nothing.
    `n` images of `n_groups` groups set it, both 0 for `manual`; `n_groups` is None where no group is known. `note` is a sentence for
    the report.
    """

    value: float
    rule: str
    params: dict[str, float]
    n: int
    n_groups: int | None
    note: str

    @property
    def exists(self) -> bool:
        """Whether some score could exceed it."""
        return math.isfinite(self.value)

    def decide(self, scores: ArrayLike) -> NDArray[np.bool_]:
        """Scores `[N]` -> bool `[N]`, True where score > value (strictly). ValueError for NaN or infinite scores."""
        return np.asarray(check_scores(scores) > self.value)


def parse_threshold(text: str) -> tuple[str, dict[str, float]]:
    """`"fpr:0.05"` -> `("fpr", {"alpha": 0.05})`; the forms are those of `RULES`. ValueError lists them."""
    rule, colon, number = text.strip().partition(":")
    try:
        name = RULES[rule][0]
        if name is None:
            if colon:
                raise ValueError
            return rule, {}
        params = {name: float(number)}
        _check_params(rule, params)
    except (KeyError, ValueError):
        forms = "; ".join(form for _, form in RULES.values())
        raise ValueError(f"threshold {text!r} is unknown; use one of: {forms}") from None
    return rule, params


def _check_params(rule: str, params: dict[str, float]) -> None:
    if rule not in RULES:
        raise ValueError(f"unknown threshold rule {rule!r}; the rules are {', '.join(RULES)}")
    name, form = RULES[rule]
    if set(params) != ({name} if name else set()):
        raise ValueError(f"threshold rule {rule!r} takes {name or 'no parameter'}, got {sorted(params) or 'nothing'}")
    in_range = {"alpha": lambda v: 0 < v < 1, "q": lambda v: 0 < v <= 1}
    for key, value in params.items():
        if not (math.isfinite(value) and in_range.get(key, lambda v: True)(value)):
            raise ValueError(f"threshold rule {rule!r}: {key} = {value} is out of range; the form is {form}")


def fit_threshold(
    rule: str,
    scores: ArrayLike | None,
    labels: ArrayLike | None = None,
    groups: Sequence[str] | None = None,
    **params: float,
) -> Threshold:
    """Set a threshold from validation `scores [N]`, never from the test set.

    `labels [N]`: 0 normal, 1 anomalous; None: all are normal. `groups [N]`: patients or slides, '' unknown.
    - `youden`: largest J = TPR - FPR on the validation ROC (Youden 1950); needs both classes. Of equal J the highest
      threshold is used (fewest false alarms). It lies halfway between the lowest flagged and the highest unflagged
      score. Infinite where J is 0.
    - `fpr` (`alpha`): split-conformal on the normals, see `conformal_threshold`.
    - `quantile` (`q`): the empirical quantile of the normals, the smallest score that a share >= q does not exceed.
    - `mean_std` (`k`): mean + k * standard deviation of the normals, ddof 1; at least two normals.
    - `manual` (`value`): given; scores are not used and may be None.
    ValueError for bad scores, labels or parameters, for no normals, and for `youden` without both classes.
    """
    _check_params(rule, params)
    if rule == "manual":
        return Threshold(params["value"], rule, params, 0, 0, "threshold given by hand: no guarantee on new images")
    values, classes, codes, n_unknown = _used(rule, scores, labels, groups)
    n_groups = len(np.unique(codes)) if n_unknown < len(values) else None
    if rule == "youden":
        value, note = _youden(classes, values)
    elif rule == "fpr":
        value = conformal_threshold(values, params["alpha"], codes)
        note = _conformal_note(value, params["alpha"], len(values), n_groups, n_unknown)
    elif rule == "quantile":
        value = float(np.quantile(values, params["q"], method="inverted_cdf"))
        note = f"empirical quantile {params['q']:g} of {len(values)} validation normals: no guarantee on new images"
        if params["q"] < 1 and value == values.max():
            note += f"; it is their highest score, since {len(values)} normals are too few for this quantile"
    else:
        value, note = _mean_std(values, params["k"])
    return Threshold(value, rule, params, len(values), n_groups, note)


def _used(
    rule: str, scores: ArrayLike | None, labels: ArrayLike | None, groups: Sequence[str] | None
) -> tuple[FloatArray, IntArray, IntArray, int]:
    """Scores, labels and group codes of the images that the rule looks at, and how many of them have no group."""
    if scores is None:
        raise ValueError(f"threshold rule {rule!r} needs validation scores")
    values = check_scores(scores)
    if groups is not None and len(groups) != len(values):
        raise ValueError(f"groups: expected {len(values)}, one for each score, got {len(groups)}")
    if rule == "youden":
        if labels is None:
            raise ValueError("threshold rule 'youden' needs validation labels of both classes")
        classes = check_labels(labels, len(values), both_classes=True)
        chosen = np.arange(len(values))
    else:
        classes = np.zeros(len(values), np.int64) if labels is None else check_labels(labels, len(values))
        chosen = np.flatnonzero(classes == 0)
        if not chosen.size:
            raise ValueError(f"threshold rule {rule!r} needs normal validation images (label 0), got none")
    codes, n_unknown = group_codes(None if groups is None else [groups[i] for i in chosen.tolist()], len(chosen))
    return values[chosen], classes[chosen], codes, n_unknown


def conformal_threshold(scores: ArrayLike, alpha: float, codes: ArrayLike) -> float:
    """The smallest score whose share in the calibration normals, each group weighing the same, reaches 1 - alpha.

    `scores [n]` of normals, `codes [n]` their groups as integers. With K groups of n_k images, a score weighs
    1 / ((K + 1) n_k), and the new image's own group weighs 1 / (K + 1) at infinity; the threshold is the 1 - alpha
    quantile of that, infinite if the finite scores do not reach it (K < 1/alpha - 1). For images that are each their
    own group it is the ceil((n + 1)(1 - alpha))-th smallest score of plain split conformal (Vovk et al. 2005).
    It holds that P(score > threshold) <= alpha for a random image of a new group, if groups are exchangeable and so are
    images inside a group: hierarchical conformal prediction, Lee, Barber & Willett 2023 (arXiv 2306.06342); the setting
    is that of Dunn, Wasserman & Ramdas 2022 (arXiv 1809.07441), whose single subsampling gives the same guarantee but
    a random threshold.
    """
    values = check_scores(scores)
    _, inverse, sizes = np.unique(np.asarray(codes), return_inverse=True, return_counts=True)
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(1 / ((len(sizes) + 1) * sizes[inverse[order]]))
    enough = np.flatnonzero(reached >= 1 - alpha - ROUNDING)
    return float(values[order[enough[0]]]) if enough.size else math.inf


def _conformal_note(value: float, alpha: float, n: int, n_groups: int | None, n_unknown: int) -> str:
    if n_groups is None:
        units = n
        note = (
            f"split-conformal on {n} validation normals, slides or patients unknown: at most {alpha:g} of new normals "
            "are flagged on average only if they are exchangeable with these, which patches of one slide are not"
        )
    else:
        units = n_groups
        note = (
            f"split-conformal over {n_groups} groups ({n} validation normals, each group weighing the same): a random "
            f"normal image of a new group is flagged with probability at most {alpha:g}, on average over groups and "
            "calibration sets, if new groups are exchangeable with these; a single group may have more"
        )
        if n_unknown:
            note += f"; {n_unknown} images have no group and count as groups of their own, which weakens this"
    return impossible(alpha, units, n_groups is not None) if math.isinf(value) else note


def units_needed(alpha: float) -> int:
    """Number of groups (or of images without groups) with validation normals that the rule `fpr:alpha` needs: ceil(1/alpha − 1)."""
    return math.ceil(1 / alpha - 1 - ROUNDING)


def unmet(rule: str, groups: Sequence[str]) -> str | None:
    """Why `rule` ("fpr:0.05") can set no threshold on validation normals of these `groups [n]` ('' unknown); None where it can."""
    name, params = parse_threshold(rule)
    if not groups:
        return "no threshold: there are no validation normals" if name != "manual" else None
    codes, n_unknown = group_codes(groups, len(groups))
    units = len(np.unique(codes))
    if name != "fpr" or units >= units_needed(params["alpha"]):
        return None
    return impossible(params["alpha"], units, n_unknown < len(groups))


def impossible(alpha: float, units: int, grouped: bool) -> str:
    """Why `fpr:alpha` has no threshold with so few groups (or images), and what to do."""
    unit = "patients or slides" if grouped else "images"
    least = math.ceil(1000 / (units + 1)) / 1000  # rounded up, so that it can be met
    return (
        f"no threshold: fpr:{alpha:g} needs validation normals of {units_needed(alpha)} {unit}, and there are {units}. "
        f"Use --threshold quantile:{1 - alpha:g} (no guarantee on new images)"
        + (f" or fpr:{least:g} (guaranteed)" if least < 1 else "")
    )


def _youden(labels: IntArray, scores: FloatArray) -> tuple[float, str]:
    levels, inverse = np.unique(scores, return_inverse=True)
    n1, n0 = int(labels.sum()), int((1 - labels).sum())
    # at level i everything from levels[i] upwards is flagged; J * n0 * n1 is an integer, so equal J compare as equal
    hits = np.cumsum(np.bincount(inverse[labels == 1], minlength=len(levels))[::-1])[::-1]
    alarms = np.cumsum(np.bincount(inverse[labels == 0], minlength=len(levels))[::-1])[::-1]
    gain = hits * n0 - alarms * n1
    best = int(len(levels) - 1 - np.argmax(gain[::-1]))
    j = int(gain[best]) / (n0 * n1)
    if j <= 0:
        note = "no threshold: the largest Youden's J on validation is 0, so none does better than chance"
        return math.inf, note + "; check the score's direction"
    note = f"largest Youden's J on validation: {j:.3f} ({n0} normal, {n1} anomalous images)"
    middle = levels[best - 1] + (levels[best] - levels[best - 1]) / 2
    return float(middle if middle < levels[best] else levels[best - 1]), note


def _mean_std(scores: FloatArray, k: float) -> tuple[float, str]:
    if len(scores) < 2:
        raise ValueError(f"threshold rule 'mean_std' needs at least two normal validation images, got {len(scores)}")
    value = float(scores.mean() + k * scores.std(ddof=1))
    return value, f"mean + {k:g} standard deviations of {len(scores)} validation normals: no guarantee on new images"
