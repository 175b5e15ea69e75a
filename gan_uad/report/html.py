"""A report as one HTML file that needs no other file: its content, and pictures as data URIs.

The layout is in `report.html.j2`, `report.css` and `report.js`. The template escapes every text. The page's policy lets a browser load no
address, and run no script except `report.js`.
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

MAX_WIDTH, MAX_HEIGHT = 1200, 3000  # px; larger pictures are reduced
MAX_PNG = 150_000  # bytes; a PNG up to this size is kept as it is
MAX_GIF = 3_000_000  # bytes; the same for an animated GIF
JPEG_QUALITY = 88
KINDS = {"PNG": "png", "JPEG": "jpeg", "GIF": "gif"}

# In the order of the page.
TOPICS = {
    "glance": "At a glance",
    "missing": "What is missing",
    "runs": "What was run",
    "data": "Data",
    "benchmark": "Methods compared",
    "detection": "Detection of anomalous images",
    "scores": "Scores and threshold",
    "patches": "Best and worst patches",
    "maps": "Closest normal images and difference maps",
    "slides": "Whole slides",
    "generation": "Quality of generated images",
    "classification": "Classification of real and generated images",
    "samples": "Samples and interpolations",
    "latent": "Latent space",
    "training": "Training",
}


@dataclass(frozen=True)
class Picture:
    """An image inside the page: data URI, size in px, and how it was changed ("" for not at all)."""

    uri: str
    width: int
    height: int
    changed: str = ""


@dataclass(frozen=True)
class TableCell:
    """A cell whose text is not its sort key. `below`: a smaller line. `span`: (value, low, high) in [0, 1], drawn."""

    text: str
    sort: float | None = None
    below: str = ""
    span: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Table:
    """Rows of strings, numbers, `TableCell`s or None under their headings. `pairs`: two columns, name and value, without headings."""

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Any]]
    pairs: bool = False
    kind: str = field(default="table", init=False)

    @property
    def numeric(self) -> list[bool]:
        """Per column: whether it holds numbers and gaps only, so that it is aligned right."""
        columns = list(zip(*self.rows, strict=True)) or [()] * len(self.headings)
        return [not self.pairs and all(map(_number_or_gap, column)) for column in columns]


@dataclass(frozen=True)
class Figure:
    """A picture with its caption and alternative text. `wide`: over the full width of the page."""

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
    """Sentences as a list. `warning`: set off by colour."""

    lines: Sequence[str]
    warning: bool = False
    kind: str = field(default="notes", init=False)


@dataclass(frozen=True)
class Folded:
    """Long text that a click opens."""

    title: str
    text: str
    kind: str = field(default="folded", init=False)


Block = Table | Figure | Gallery | Notes | Folded


@dataclass(frozen=True)
class Gap:
    """What is missing, of which source ("" for all), and the command that makes it ("" where there is none)."""

    source: str
    text: str
    command: str = ""


class Document:
    """The content of a report, by topic and source. Sources are names. An empty topic is not on the page."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.results: list[tuple[str, str]] = []
        self.ran: list[tuple[str, str]] = []
        self.topics: dict[str, dict[str, list[Block]]] = {}
        self.gaps: list[Gap] = []

    def add(self, topic: str, source: str, *blocks: Block) -> None:
        """Append blocks to a topic (a key of `TOPICS`), by source."""
        if topic not in TOPICS:
            raise ValueError(f"no topic {topic!r}; the topics are {', '.join(TOPICS)}")
        if blocks:
            self.topics.setdefault(topic, {}).setdefault(source, []).extend(blocks)

    def result(self, source: str, text: str, last: bool = False) -> None:
        """Add a result to the top of the page. `last`: after all that are not."""
        (self.ran if last else self.results).append((source, text))

    def missing(self, source: str, text: str, command: str = "") -> None:
        """Add what is missing, once."""
        gap = Gap(source, text, command)
        if gap not in self.gaps:
            self.gaps.append(gap)

    def picture(
        self, topic: str, source: str, path: Path, caption: str, *, alt: str | None = None, wide: bool = False
    ) -> bool:
        """Add a picture file; returns whether it is there. One that cannot be read is listed as missing."""
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
        """The page. `made_by`: rows of its footer, name -> text. `generator`: the program and its version."""
        from jinja2 import Environment, PackageLoader, StrictUndefined

        environment = Environment(
            loader=PackageLoader("gan_uad.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
            lstrip_blocks=True,
        )  # fmt: skip
        environment.filters |= {"cell": _text, "sort": _sort}
        style, script = (_read(f"report.{ending}") for ending in ("css", "js"))
        lists: dict[str, list[Any]] = {"glance": self.results + self.ran, "missing": self.gaps}
        shown = [key for key in TOPICS if key in self.topics or lists.get(key)]
        blocks = [block for by_source in self.topics.values() for some in by_source.values() for block in some]
        changed = sum(bool(picture.changed) for block in blocks for picture in _pictures(block))
        page = environment.get_template("report.html.j2").render(
            title=self.title, topics=[(key, TOPICS[key], self.topics.get(key, {})) for key in shown], results=lists["glance"],
            gaps=self.gaps, made_by=made_by, generator=generator, style=style, script=script, style_hash=_hash(style),
            script_hash=_hash(script), changed=changed, max_width=MAX_WIDTH, max_height=MAX_HEIGHT,
        )  # fmt: skip
        # A file name may hold bytes that are no UTF-8; they are shown as numbers.
        return page.encode("utf-8", "backslashreplace").decode("utf-8")


def embed(source: Path | NDArray[np.uint8]) -> Picture:
    """A picture file (PNG, JPEG, GIF, ...) or pixels `[H, W, 3]` as a data URI, reduced where it is large.

    Above 1,200 × 3,000 px it is reduced. A PNG of more than 150 kB becomes a JPEG where that is smaller. Transparency is composited on
    white. Raises `ValueError` for a file that cannot be read as a picture.
    """
    from PIL import Image

    if isinstance(source, np.ndarray):
        return _encoded(Image.fromarray(source), "")
    try:
        content = source.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            kind = KINDS.get(image.format or "")
            small = image.width <= MAX_WIDTH and image.height <= MAX_HEIGHT
            light = len(content) <= (MAX_GIF if getattr(image, "is_animated", False) else MAX_PNG)
            if kind and small and light:
                return Picture(_uri(content, kind), image.width, image.height)
            picture = _on_white(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"the picture {source.name} cannot be read ({error})") from None
    return _encoded(picture, kind or "")


def interval(metric: Mapping[str, Any], *, drawn: bool = True) -> TableCell:
    """A metric `{value, low, high}` in [0, 1] with its interval, as text and, if asked, drawn."""
    value, low, high = (metric.get(key) for key in ("value", "low", "high"))
    text, _, below = format_interval(value, low, high).partition(" ")
    numbers = [float(v) for v in (value, low, high) if v is not None and math.isfinite(v)]
    span = (numbers[0], numbers[1], numbers[2]) if drawn and len(numbers) == 3 else None
    return TableCell(text, numbers[0] if numbers else None, "" if value is None else below, span)


def percent(share: float | None) -> TableCell:
    """A share in per cent."""
    known = share is not None and math.isfinite(share)
    return TableCell(f"{100 * share:.1f} %" if known and share is not None else MISSING, share if known else None)


def _on_white(image: Any) -> Any:
    from PIL import Image

    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _encoded(image: Any, was: str) -> Picture:
    """An RGB image, reduced if too large, as the smaller of PNG and JPEG (as PNG where that is small)."""
    from PIL import Image

    changes = []
    scale = min(1.0, MAX_WIDTH / image.width, MAX_HEIGHT / image.height)
    if scale < 1:
        before = f"{image.width:,} × {image.height:,} px"
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
        changes.append(f"reduced from {before}")
    png, jpeg = io.BytesIO(), io.BytesIO()
    image.save(png, "PNG")
    content, kind = png.getvalue(), "png"
    if len(content) > MAX_PNG or was == "jpeg":
        image.save(jpeg, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        if len(jpeg.getvalue()) < len(content):
            content, kind = jpeg.getvalue(), "jpeg"
            changes += [] if was == "jpeg" else ["stored as JPEG"]
    return Picture(_uri(content, kind), image.width, image.height, ", ".join(changes))


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _read(name: str) -> str:
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
    """The sort key of a cell as a JavaScript number; "" where it has none."""
    number = value.sort if isinstance(value, TableCell) else value
    if not isinstance(number, int | float) or isinstance(number, bool) or not math.isfinite(number):
        return ""
    return repr(float(number))
