"""`gan-uad evaluate`: which of its three jobs is meant: scored patches, scored slides, or a cross-validation."""

from __future__ import annotations

from pathlib import Path

from gan_uad.errors import UserError
from gan_uad.jobs.generate import refuse
from gan_uad.jobs.slide_tasks import holds_slides


def evaluations(
    sources: tuple[str, ...], out: Path | None, *, threshold: str | None, resamples: int, seed: int, annotations: Path | None,
    classes: dict[str, str], unannotated: str, labels: Path | None, folds: int | None, data: str | None, external: str | None,
    overrides: tuple[str, ...],
) -> None:  # fmt: skip
    """See `cross_validate` where there are `folds`, else `evaluate_slides` or `evaluate`.

    Raises `UserError` for options of another of the three.
    """
    of_folds = {"--data": data, "--external": external, "-o": overrides or None}
    of_slides = {
        "--annotations": annotations, "--labels": labels, "--class": classes or None, "--unannotated": unannotated == "normal",
    }  # fmt: skip
    if folds is not None:
        from gan_uad.jobs.cross_validate import cross_validate

        refuse(of_slides, "goes with folders of score-slide only")
        if len(sources) > 1:
            raise UserError("--folds takes one CONFIG")
        cross_validate(sources[0], folds, data, external, out, overrides, threshold, resamples, seed)
        return
    refuse(of_folds, "goes with --folds only")
    folders = [Path(source) for source in sources]
    if all(map(holds_slides, folders)):
        from gan_uad.jobs.evaluate_slides import evaluate_slides

        refuse({"--threshold": threshold}, "has no use for slides, which are ranked")
        evaluate_slides(folders, out, annotations, labels, classes, unannotated, resamples, seed)
        return
    from gan_uad.jobs.evaluate import evaluate

    refuse(of_slides, "goes with folders of score-slide only")
    evaluate(folders, out, threshold, resamples, seed)
