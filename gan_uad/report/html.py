"""A report as one HTML file that needs nothing else: what stands in it, and how pictures get inside.

`report.html.j2` (with `report.css` and `report.js`) is how it looks. Every text is escaped by the template; the page's own policy
lets a browser load no address and run no script but the one of `report.js`.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gan_uad.tables import MISSING, format_interval, format_number

WIDEST, HIGHEST = 1200, 3000  # px of a picture inside; larger ones are reduced
KEPT = 150_000  # bytes up to which a PNG stays as it is
MOVING = 3_000_000  # ... and an animated GIF
QUALITY = 88
KINDS = {"PNG": "png", "JPEG": "jpeg", "GIF": "gif"}

# In the order of the page.
TOPICS = {
    "glance": "At a glance",
    "missing": "What was not done, or is missing",
    "runs": "What was run",
    "data": "Data",
    "benchmark": "Methods compared",
    "detection": "Detection of anomalous images",
    "scores": "Scores and threshold",
    "patches": "Best and worst patches",
    "maps": "Closest normal images and difference maps",
    "slides": "Whole slides",
    "generation": "Quality of generated images",
    "classification": "Classification of real and synthesised images",
    "samples": "Samples and interpolations",
    "latent": "Latent space",
    "training": "Training",
}


@dataclass(frozen=True)
class Picture:
    """An image inside the page: data URI, size in px, and what was done to it in words ("" for nothing)."""

    uri: str
    width: int
    height: int
    changed: str = ""


@dataclass(frozen=True)
class TableCell:
    """A cell of a table whose text is not what it is sorted by. `below`: a smaller line. `span`: (value, low, high) in [0, 1], drawn."""

    text: str
    sort: float | None = None
    below: str = ""
    span: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Table:
    """Rows of strings, numbers, `Cell`s or None under their headings. `pairs`: two columns, name and value, without headings."""

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Any]]
    pairs: bool = False
    kind: str = field(default="table", init=False)

    @property
    def numeric(self) -> list[bool]:
        """Per column: whether it holds numbers and gaps only, which stand at the right."""
        columns = list(zip(*self.rows, strict=True)) or [()] * len(self.headings)
        return [not self.pairs and all(map(_number_or_gap, column)) for column in columns]


@dataclass(frozen=True)
class Figure:
    """A picture with its caption; `alt` for those who cannot see it. `wide`: over the page's whole width."""

    picture: Picture
    caption: str
    alt: str
    wide: bool = False
    kind: str = field(default="figure", init=False)


@dataclass(frozen=True)
class Gallery:
    """Small pictures side by side, each with a name and a line below."""

    caption: str
    items: Sequence[tuple[Picture, str, str]]
    kind: str = field(default="gallery", init=False)


@dataclass(frozen=True)
class Notes:
    """Sentences, as a list; `warning` where they must not be passed over."""

    lines: Sequence[str]
    warning: bool = False
    kind: str = field(default="notes", init=False)


@dataclass(frozen=True)
class Folded:
    """Long text, opened by a click."""

    title: str
    text: str
    kind: str = field(default="folded", init=False)


Block = Table | Figure | Gallery | Notes | Folded


@dataclass(frozen=True)
class Gap:
    """What was not done, of which source ("" for all), and the command that does it ("" where there is none)."""

    source: str
    text: str
    command: str = ""


class Document:
    """What a report says, by topic and source. Sources are names; a topic that nobody adds to is not on the page."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.results: list[tuple[str, str]] = []
        self.ran: list[tuple[str, str]] = []
        self.topics: dict[str, dict[str, list[Block]]] = {}
        self.gaps: list[Gap] = []

    def add(self, topic: str, source: str, *blocks: Block) -> None:
        """Put blocks under a topic (a key of `TOPICS`), below what the source has there already."""
        if topic not in TOPICS:
            raise ValueError(f"no topic {topic!r}; the topics are {', '.join(TOPICS)}")
        if blocks:
            self.topics.setdefault(topic, {}).setdefault(source, []).extend(blocks)

    def result(self, source: str, text: str, last: bool = False) -> None:
        """Say at the top of the page what came out, before or after what stands there that is not `last`."""
        (self.ran if last else self.results).append((source, text))

    def missing(self, source: str, text: str, command: str = "") -> None:
        """Say what was not done, once."""
        gap = Gap(source, text, command)
        if gap not in self.gaps:
            self.gaps.append(gap)

    def picture(
        self, topic: str, source: str, path: Path, caption: str, *, alt: str | None = None, wide: bool = False
    ) -> bool:
        """Add a picture file; returns whether it is there. One that cannot be read is told among what is missing."""
        if not path.is_file():
            return False
        try:
            picture = embed(path)
        except ValueError as error:
            self.missing(source, str(error))
            return False
        self.add(topic, source, Figure(picture, caption, alt or caption, wide))
        return True

    def render(self, made_by: Mapping[str, str], generator: str) -> str:
        """The page. `made_by`: what made it, name -> text, shown at its foot; `generator`: the program and its version."""
        from jinja2 import Environment, PackageLoader, StrictUndefined

        environment = Environment(
            loader=PackageLoader("gan_uad.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
            lstrip_blocks=True,
        )  # fmt: skip
        environment.filters |= {"cell": _text, "sort": _sort}
        style, script = (_own(f"report.{ending}") for ending in ("css", "js"))
        own: dict[str, list[Any]] = {"glance": self.results + self.ran, "missing": self.gaps}
        shown = [key for key in TOPICS if key in self.topics or own.get(key)]
        blocks = [block for by_source in self.topics.values() for parts in by_source.values() for block in parts]
        changed = sum(bool(picture.changed) for block in blocks for picture in _pictures(block))
        page = environment.get_template("report.html.j2").render(
            title=self.title, topics=[(key, TOPICS[key], self.topics.get(key, {})) for key in shown], results=own["glance"],
            gaps=self.gaps, made_by=made_by, generator=generator, style=style, script=script, style_hash=_hash(style),
            script_hash=_hash(script), changed=changed, widest=WIDEST, highest=HIGHEST,
        )  # fmt: skip
        # A file name that is no UTF-8 has bytes that cannot be written; they are shown by their numbers.
        return page.encode("utf-8", "backslashreplace").decode("utf-8")


def embed(source: Path | NDArray[np.uint8]) -> Picture:
    """A picture file (PNG, JPEG, GIF, ...) or pixels `[H, W, 3]` as a data URI, made smaller where it is large.

    Wider than 1,200 or higher than 3,000 px: reduced. A PNG of more than 150 kB becomes a JPEG where that is smaller. Transparency is
    put on white. Raises `ValueError` for a file that cannot be read as a picture.
    """
    from PIL import Image

    if isinstance(source, np.ndarray):
        return _encoded(Image.fromarray(source), "")
    try:
        content = source.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            kind = KINDS.get(image.format or "")
            small = image.width <= WIDEST and image.height <= HIGHEST
            light = len(content) <= (MOVING if getattr(image, "is_animated", False) else KEPT)
            if kind and small and light:
                return Picture(_uri(content, kind), image.width, image.height)
            picture = _on_white(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"the picture {source.name} cannot be read ({error})") from None
    return _encoded(picture, kind or "")


def interval(figure: Mapping[str, Any], *, drawn: bool = True) -> TableCell:
    """A figure `{value, low, high}` in [0, 1] with its interval, as text and, if asked, drawn."""
    value, low, high = (figure.get(key) for key in ("value", "low", "high"))
    text, _, below = format_interval(value, low, high).partition(" ")
    numbers = [float(v) for v in (value, low, high) if v is not None and math.isfinite(v)]
    span = (numbers[0], numbers[1], numbers[2]) if drawn and len(numbers) == 3 else None
    return TableCell(text, numbers[0] if numbers else None, "" if value is None else below, span)


def percent(share: float | None) -> TableCell:
    """A share as per cent."""
    known = share is not None and math.isfinite(share)
    return TableCell(f"{100 * share:.1f} %" if known and share is not None else MISSING, share if known else None)


def _on_white(image: Any) -> Any:
    from PIL import Image

    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _encoded(image: Any, was: str) -> Picture:
    """An RGB image, reduced if need be, as the smaller of PNG and JPEG (as PNG where that is small)."""
    from PIL import Image

    changes = []
    scale = min(1.0, WIDEST / image.width, HIGHEST / image.height)
    if scale < 1:
        before = f"{image.width:,} × {image.height:,} px"
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
        changes.append(f"reduced from {before}")
    png, jpeg = io.BytesIO(), io.BytesIO()
    image.save(png, "PNG")
    content, kind = png.getvalue(), "png"
    if len(content) > KEPT or was == "jpeg":
        image.save(jpeg, "JPEG", quality=QUALITY, subsampling=0)
        if len(jpeg.getvalue()) < len(content):
            content, kind = jpeg.getvalue(), "jpeg"
            changes += [] if was == "jpeg" else ["stored as JPEG"]
    return Picture(_uri(content, kind), image.width, image.height, ", ".join(changes))


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _own(name: str) -> str:
    return resources.files("gan_uad.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _pictures(block: Block) -> list[Picture]:
    if isinstance(block, Figure):
        return [block.picture]
    return [picture for picture, _, _ in block.items] if isinstance(block, Gallery) else []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number_or_gap(value: Any) -> bool:
    return value is None or bool(_sort(value)) or _text(value) == MISSING


def _text(value: Any) -> str:
    if isinstance(value, TableCell):
        return value.text
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return format_number(value) if value is None or _is_number(value) else str(value)


def _sort(value: Any) -> str:
    """What a cell is sorted by, as JavaScript reads numbers; "" for one that holds none."""
    number = value.sort if isinstance(value, TableCell) else value
    if not isinstance(number, int | float) or isinstance(number, bool) or not math.isfinite(number):
        return ""
    return repr(float(number))
