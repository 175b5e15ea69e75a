"""Which annotation file belongs to which slide, by their names."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gan_uad import console
from gan_uad.errors import JobFailed, UserError
from gan_uad.slides.annotations import SUFFIXES

ENDINGS = ("_annotations", "_annotation")  # after the slide's name
# Endings of slide files, left out of a name that has several: c.ome.tif may be annotated as c.
SLIDE_ENDINGS = (
    ".ome",
    ".tif",
    ".tiff",
    ".svs",
    ".ndpi",
    ".mrxs",
    ".scn",
    ".vms",
    ".vmu",
    ".bif",
    ".czi",
    ".dcm",
    ".qptiff",
    ".btf",
)
NOT_READ = {".ndpa": "NDP.view's, which is not read", ".qpdata": "QuPath's own, which is not read: export GeoJSON"}
N_LISTED = 10  # names of each list


@dataclass
class Matches:
    """The annotation of each slide.

    found: slide -> annotation. shared: slides whose annotation lies in the folder itself, so that it may be of any slide of that name.
    unclear: slide -> why its annotation is not known. without: slides that have none. unused: annotation files of no slide.
    """

    folder: Path
    found: dict[Path, Path] = field(default_factory=dict)
    shared: set[Path] = field(default_factory=set)
    unclear: dict[Path, str] = field(default_factory=dict)
    without: list[Path] = field(default_factory=list)
    unused: list[Path] = field(default_factory=list)

    def of(self, slide: Path, other: str | None = None) -> Path | None:
        """The annotation of a slide; None where it has none.

        `other`: another slide of the same name, known from an earlier call. Raises `UserError` where it is unclear which slide a file
        belongs to: without it tumour would count as normal, with it the tumour of another slide would.
        """
        if slide in self.unclear:
            raise UserError(self.unclear[slide])
        if other is not None and slide in self.shared:
            place = self.folder / slide.parent.name
            raise UserError(
                f"{self.found[slide]} may be of this slide or of {other}; move the annotation of this one to {place}"
            )
        return self.found.get(slide)

    def report(self, strict: bool, normal: bool) -> None:
        """Print how many slides are annotated, and list those that are not and the files of no slide.

        normal: slides without an annotation count as normal. Raises `JobFailed` where `strict` and anything is listed.
        """
        many = len(self.found) + len(self.without) + len(self.unclear)
        counts = [f"{len(self.found)} annotated", f"{len(self.without)} not"]
        counts += [f"{len(self.unclear)} unclear"] if self.unclear else []
        console.say(f"{many} slides: {', '.join(counts)}; {len(self.unused)} annotation files unused")
        lists = [
            ("no annotation" + (", so normal" if normal else ""), [path.name for path in self.without]),
            ("unclear", [path.name for path in self.unclear]),
            ("unused", [_shown(path, self.folder) for path in self.unused]),
        ]
        for what, names in lists:
            if names:
                more = f" and {len(names) - N_LISTED} more" if len(names) > N_LISTED else ""
                console.say(f"{what}: {', '.join(names[:N_LISTED])}{more}")
        if self.unused and self.without and normal:
            console.say("warning: an unused file may be of a slide that now counts as normal; name it like the slide")
        if strict and (self.without or self.unclear or self.unused):
            raise JobFailed(
                "--strict: every slide needs one annotation, and every annotation file a slide; see the lists above"
            )


def match_annotations(folder: Path, slides: Sequence[Path]) -> Matches:
    """Find the annotation of every slide in a folder.

    A file belongs to the slide whose complete file name it has before its own ending (`b.svs.geojson`), or whose name without endings
    (`b.xml`), also with `_annotation` or `_annotations` after it. Case and form of Unicode do not matter unless two slides differ in
    nothing else. Files in a subfolder with the name of a slide's folder (as given, else with links followed) are of its slides alone.
    A file in `folder` itself that may be of several slides is unclear for all of them.
    """
    result = Matches(folder)
    slides = list(dict.fromkeys(slides))
    used: set[Path] = set()
    several: dict[Path, list[Path]] = {}
    open_slides = []
    for slide in slides:
        for place in dict.fromkeys((slide.absolute().parent.name, slide.resolve().parent.name)):
            named = [path for path in _files(folder / place) if place and _level(path, slide)]
            if named:
                several[slide] = named
                used.update(named)
                break
        else:
            open_slides.append(slide)
    for path in _files(folder):
        levels = {slide: _level(path, slide) for slide in open_slides}
        best = [slide for slide, level in levels.items() if level == 2] or [
            slide for slide, level in levels.items() if level
        ]
        best = [slide for slide in best if _same_case(path, slide)] or best
        used.update([path] if best else [])
        for slide in best:
            if len(best) > 1:
                where = " or ".join(str(folder / slide.absolute().parent.name) for slide in best[:2])
                names = " or ".join(str(slide) for slide in best[:2])
                result.unclear[slide] = (
                    f"{path} may be of {names}; name it like the complete file, or move it to {where}"
                )
            else:
                several.setdefault(slide, []).append(path)
                result.shared.add(slide)
    for slide in slides:
        readable = [path for path in several.get(slide, []) if path.suffix.lower() in SUFFIXES]
        if len(readable) > 1:
            names = " and ".join(_shown(path, folder) for path in readable[:2])
            result.unclear[slide] = f"{slide.name} has two annotations in {folder}, {names}: keep one of them there"
        elif slide not in result.unclear and readable:
            result.found[slide] = readable[0]
        elif slide not in result.unclear:
            result.without.append(slide)
    everything = [*_files(folder), *(path for place in _folders(folder) for path in _files(place))]
    result.unused = [path for path in everything if path not in used or path.suffix.lower() in NOT_READ]
    return result


def _files(folder: Path) -> list[Path]:
    """Annotation files of a folder, without hidden ones."""
    if not folder.is_dir():
        return []
    endings = (*SUFFIXES, *NOT_READ)
    return [path for path in _entries(folder) if path.suffix.lower() in endings and path.is_file()]


def _folders(folder: Path) -> Iterator[Path]:
    return (path for path in _entries(folder) if path.is_dir())


def _entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _shown(path: Path, folder: Path) -> str:
    why = NOT_READ.get(path.suffix.lower())
    return str(path.relative_to(folder)) + (f" ({why})" if why else "")


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip().casefold()


def _level(annotation: Path, slide: Path) -> int:
    """2: named like the slide's complete file, 1: like the slide without endings, 0: otherwise."""
    stem = _key(annotation.name[: -len(annotation.suffix)])
    stems = {stem, *(stem.removesuffix(ending).strip() for ending in ENDINGS)}
    if _key(slide.name) in stems:
        return 2
    names, short = {_key(slide.stem)}, slide.stem
    while (ending := Path(short).suffix) and ending.lower() in SLIDE_ENDINGS:
        short = short[: -len(ending)]
        names.add(_key(short))
    return int(bool(names & stems))


def _same_case(annotation: Path, slide: Path) -> bool:
    return annotation.name.strip().startswith(slide.name.split(".")[0].strip())
