"""Public data sets: where each is published, under which licence, how large it is, and the known hashes of its files.

Facts only; `data/download.py` downloads. Looked up on 2026-11-21 in public documents, which are named beside each set. No address was
tried, since there was no network where this was written. What could not be verified is left to instructions (`by_hand`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from gan_uad.data.manifest import SPLIT_NAMES
from gan_uad.errors import UserError, near

LOOKED_UP = "2026-11-21"
GB, MB, KB = 10**9, 10**6, 10**3
CHECK = "gan-uad data check {path}"


@dataclass(frozen=True)
class Item:
    """One file of a set. Hashes are written `md5:…`."""

    name: str  # path below the set's folder, unpacked
    urls: tuple[str, ...]  # the same file, tried in this order
    digest: str = ""  # hash of the download; empty: none is published, and the file is a zip, checked by its own CRC-32
    size: int = 0  # approximate bytes to download; 0: unknown
    split: str = ""
    unpacked: str = ""  # hash of what a downloaded .gz holds; empty: it is no .gz
    kept: int = 0  # most bytes on disk after unpacking; 0: as many as were downloaded

    @property
    def fetched(self) -> str:
        """Name of the download."""
        return f"{self.name}.gz" if self.unpacked else self.name


@dataclass(frozen=True)
class DataSet:
    """One public set. The files of a set with a `listing` are known only once that list of checksums is downloaded."""

    name: str
    about: str
    licence: str
    page: str  # for people: what it is, who made it, how to cite it
    place: str  # folder below that of all data sets; empty: its files lie directly in the latter
    next: str = CHECK  # the command to run next; {path} is the set, {root} the folder of all data sets
    items: tuple[Item, ...] = ()
    listing: str = ""
    size: str = ""
    by_hand: tuple[str, ...] = ()  # steps, for a set that needs an account or has no known address
    notes: tuple[str, ...] = ()


# Addresses and MD5 of the packed files: Zenodo record 2546921 and torchvision's PCAM class (0.26). The table in the authors' README has
# those of valid and test swapped (their issues 1 and 4; torchvision's pull request 6644). MD5 of the unpacked files: kaiko's eva.
_PCAM_URL = "https://zenodo.org/records/2546921/files/camelyonpatch_level_2_split_{}?download=1"
_PCAM_FILES = (  # name, MD5 packed and unpacked, bytes, images
    ("train_x.h5", "1571f514728f59376b705fc836ff4b63", "01844da899645b4d6f84946d417ba453", 6_400 * MB, 262_144),
    ("train_y.h5", "35c2d7259d906cfc8143347bb8e05be7", "0781386bf6c2fb62d58ff18891466aca", 21 * KB, 0),
    ("train_meta.csv", "5a3dd671e465cfd74b5b822125e65b0a", "", 0, 0),
    ("valid_x.h5", "d5b63470df7cfa627aeec8b9dc0c066e", "81cf9680f1724c40673f10dc88e909b1", 806 * MB, 32_768),
    ("valid_y.h5", "2b85f58b927af9964a4c15b8f7e8f179", "94d8aacc249253159ce2a2e78a86e658", 3 * KB, 0),
    ("valid_meta.csv", "67589e00a4a37ec317f2d1932c7502ca", "", 0, 0),
    ("test_x.h5", "d8c2d60d490dbd479f8199bdfa0cf6ec", "2614b2e6717d6356be141d9d6dbfcb7e", 801 * MB, 32_768),
    ("test_y.h5", "60a7035772fbdb7f34eb86d4420cf66a", "11ed647efe9fe457a4eb45df1dba19ba", 3 * KB, 0),
    ("test_meta.csv", "3455fd69135b66734e1008f3af684566", "", 0, 0),
)


def _pcam_item(name: str, digest: str, unpacked: str, size: int, images: int) -> Item:
    url = _PCAM_URL.format(f"{name}.gz" if unpacked else name)
    split = SPLIT_NAMES[name.partition("_")[0]]
    inner, pixels = f"md5:{unpacked}" if unpacked else "", images * 96 * 96 * 3
    return Item(f"camelyonpatch_level_2_split_{name}", (url,), f"md5:{digest}", size, split, inner, pixels)


_PCAM = DataSet(
    "pcam",
    "PatchCamelyon: 327,680 patches of lymph nodes, 96 px; the label is that of the centre 32 x 32",
    "CC0 1.0",
    "https://github.com/basveeling/pcam",
    "pcam",
    items=tuple(_pcam_item(*file) for file in _PCAM_FILES),
    size="8.0 GB packed, at most 9.1 GB unpacked",
)

# Addresses as in many public programs; the authors state neither licence nor hash. Size: 1.6 GB.
_IDC_FILE = "IDC_regular_ps50_idx5.zip"
_IDC_URLS = (
    f"https://andrewjanowczyk.com/wp-static/{_IDC_FILE}",
    f"http://gleason.case.edu/webdata/jpi-dl-tutorial/{_IDC_FILE}",
)
_IDC = DataSet(
    "idc",
    "Invasive ductal carcinoma: 277,524 patches of breast, 50 px; splits are made by patient",
    "none stated by its authors; cite Cruz-Roa et al. 2014, Janowczyk & Madabhushi 2016",
    "http://www.andrewjanowczyk.com/use-case-6-invasive-ductal-carcinoma-idc-segmentation/",
    "",
    items=(Item(_IDC_FILE, _IDC_URLS, size=1_600 * MB),),
    size="1.6 GB",
    notes=("The zip is read in place. If both addresses fail: the same patches are on Kaggle, see docs/data.md.",),
)

# Bucket of the AWS Registry of Open Data; its checksums.md5 names every file. Sizes: a public listing of the bucket.
CAMELYON16 = "https://camelyon-dataset.s3.us-west-2.amazonaws.com/CAMELYON16/"
_CAMELYON_SLIDE = 1_886 * MB  # the mean of 399 slides
_CAMELYON_FILE = re.compile(
    r"(images/(?P<slide>normal|tumor|test)_\d+\.tif|annotations/(?P<outline>tumor|test)_\d+\.xml|evaluation/reference\.csv)$"
)
_CAMELYON = DataSet(
    "camelyon16",
    "CAMELYON16: 399 whole slides of lymph nodes (159 normal, 111 tumor, 129 test) and outlines of the metastases",
    "CC0 1.0",
    "https://camelyon17.grand-challenge.org/Data/",
    "camelyon16",
    "gan-uad tile {path}/images/*.tif --annotations {path}/annotations --unannotated normal --size 256 --mpp 0.5 "
    "--out {root}/camelyon16_256 && gan-uad data check {root}/camelyon16_256",
    listing=f"{CAMELYON16}checksums.md5",
    size="about 750 GB; each slide about 1.9 GB",
)

# Addresses and MD5: medmnist/info.py of MedMNIST 3.0.2. By name: channels, images, normal class, licence, MD5 at 28, 64, 128, 224 px.
# Left out: ChestMNIST (several labels per image), the organs (CT, nothing is abnormal) and the 3D sets.
_MEDMNIST = "https://zenodo.org/records/10519652/files/{}?download=1"
SIZES = (28, 64, 128, 224)
_BY, _BY_NC = "CC BY 4.0", "CC BY-NC 4.0 (not for commercial use)"
_MEDMNIST_SETS: dict[str, tuple[str, int, int, str, str, tuple[str, str, str, str]]] = {
    "pathmnist": (
        "nine tissues of the colon, H&E; class 6 is normal mucosa", 3, 107_180, "6", _BY,
        ("a8b06965200029087d5bd730944a56c1", "55aa9c1e0525abe5a6b9d8343a507616",
         "ac42d08fb904d92c244187169d1fd1d9", "2c51a510bcdc9cf8ddb2af93af1eadec"),
    ),
    "dermamnist": (
        "seven lesions of the skin, dermoscopy; class 5 is naevi", 3, 10_015, "5", _BY_NC,
        ("0744692d530f8e62ec473284d019b0c7", "b70a2f5635c6199aeaa28c31d7202e1f",
         "2defd784463fa5243564e855ed717de1", "8974907d8e169bef5f5b96bc506ae45d"),
    ),
    "bloodmnist": (
        "eight kinds of normal blood cells; say yourself which is normal", 3, 17_092, "", _BY,
        ("7053d0359d879ad8a5505303e11de1dc", "2b94928a2ae4916078ca51e05b6b800b",
         "adace1e0ed228fccda1f39692059dd4c", "b718ff6835fcbdb22ba9eacccd7b2601"),
    ),
    "tissuemnist": (
        "eight kinds of kidney cells, grey; say yourself which is normal", 1, 236_386, "", _BY,
        ("ebe78ee8b05294063de985d821c1c34b", "123ece2eba09d0aa5d698fda57103344",
         "61b955355d7425a89687b06cca3ce0c2", "b077128c4a949f0a4eb01517f9037b9c"),
    ),
    "breastmnist": (
        "ultrasound of the breast; class 1 is normal and benign", 1, 780, "1", _BY,
        ("750601b1f35ba3300ea97c75c52ff8f6", "742edef2a1fd1524b2efff4bd7ba9364",
         "363e4b3f8d712e9b5de15470a2aaadf1", "b56378a6eefa9fed602bb16d192d4c8b"),
    ),
    "octmnist": (
        "OCT of the retina; class 3 is normal", 1, 109_309, "3", _BY,
        ("c68d92d5b585d8d81f7112f81e2d0842", "e229e9440236b774d9f0dfef9d07bdaf",
         "0a97e76651ace45c5d943ee3f65b63ae", "abc493b6d529d5de7569faaef2773ba3"),
    ),
    "pneumoniamnist": (
        "X-rays of children's chests; class 0 is normal", 1, 5_856, "0", _BY,
        ("28209eda62fecd6e6a2d98b1501bb15f", "8f4eceb4ccffa70c672198ea285246c6",
         "05b46931834c231683c68f40c47b2971", "d6a3c71de1b945ea11211b03746c1fe1"),
    ),
    "retinamnist": (
        "photographs of the retina, five grades; class 0 is without retinopathy", 3, 1_600, "0", _BY,
        ("bd4c0672f1bba3e3a89f0e4e876791e4", "afda852cc34dcda56f86ad2b2457dbcc",
         "e48e916a24454daf90583d4e6efb1a18", "eae7e3b6f3fcbda4ae613ebdcbe35348"),
    ),
}  # fmt: skip


_CLASSES = {"pathmnist": 9, "dermamnist": 7, "breastmnist": 2, "octmnist": 4, "pneumoniamnist": 2, "retinamnist": 5}


def normal_class(file: str, classes: set[str]) -> str:
    """The normal class of a published MedMNIST file by its name (`breastmnist_64.npz`); empty where it is not known.

    A file with other classes than the published one has only its name.
    """
    sizes = "|".join(str(side) for side in SIZES)
    match = re.fullmatch(rf"({'|'.join(_CLASSES)})(_({sizes}))?\.npz", file.lower())
    if not match or not classes <= {str(k) for k in range(_CLASSES[match[1]])}:
        return ""
    normal = _MEDMNIST_SETS[match[1]][3]
    return normal if normal in classes else ""


def _medmnist(name: str, side: int) -> DataSet:
    about, channels, images, normal, licence, digests = _MEDMNIST_SETS[name]
    file = f"{name}.npz" if side == 28 else f"{name}_{side}.npz"
    largest = images * side * side * channels
    item = Item(file, (_MEDMNIST.format(file),), f"md5:{digests[SIZES.index(side)]}", kept=largest)
    check = f"{CHECK} -o 'data.normal_classes=[\"{normal or 'CLASS'}\"]'"
    size = f"at most {readable(largest)} at {side} px (--size)"
    return DataSet(name, f"MedMNIST: {about}", licence, "https://medmnist.com", "", check, (item,), size=size)


def _by_hand(name: str, place: str, page: str, about: str, *steps: str) -> DataSet:
    return DataSet(name, about, "see its page", f"https://{page}", place, by_hand=steps)


_BY_HAND = (
    _by_hand(
        *("skin", "skin", "www.kaggle.com/datasets/fanconic/skin-cancer-malignant-vs-benign"),
        "Dermoscopic images, benign against malignant: 3,297 images, 224 px",
        "sign in on the page and download the archive",
        "unpack it; it may hold everything twice, as train, test and as data/train, data/test",
        "move one train and one test to {path}: {path}/train/benign, train/malignant, test/benign, test/malignant",
    ),
    _by_hand(
        *("lc25000", "colon", "www.kaggle.com/datasets/andrewmvd/lung-and-colon-cancer-histopathological-images"),
        "LC25000: 25,000 images of lung and colon, 768 px, in five classes; many are rotated copies of a few hundred",
        "sign in on the page and download the archive",
        "unpack it and move the folders colon_n and colon_aca (in lung_colon_image_set/colon_image_sets) to {path}",
        "give groups in an index.csv (docs/data.md): a split by image would test on rotated copies of training images",
    ),
    _by_hand(
        *("bmad_camelyon16", "bmad_camelyon16", "github.com/DorisBao/BMAD"),
        "CAMELYON16 patches of the benchmark BMAD, 256 px",
        "download the Camelyon16 part from the links on the page",
        "unpack it to {path}: train/good, valid/good, valid/Ungood, test/good, test/Ungood",
    ),
)


def names() -> list[str]:
    """Sets that `entry` knows."""
    return [_IDC.name, "pcam", _CAMELYON.name, "medmnist", *_MEDMNIST_SETS, *(known.name for known in _BY_HAND)]


def entry(name: str, side: int | None = None) -> DataSet:
    """What is known of a set; `medmnist` is PathMNIST. side: of a MedMNIST set, in px (64). Raises `UserError` for an unknown name."""
    medmnist = "pathmnist" if name == "medmnist" else name
    if medmnist in _MEDMNIST_SETS:
        return _medmnist(medmnist, side or 64)
    others = {known.name: known for known in (_IDC, _PCAM, _CAMELYON, *_BY_HAND)}
    if name not in others:
        raise UserError(f"no data set is called {name!r}: {near(name, names())}")
    if side is not None:
        raise UserError(f"--size is for the sets of MedMNIST; {name} has one size")
    return others[name]


def listed(content: str, base: str) -> list[Item]:
    """The slides and outlines of CAMELYON16 that its checksums.md5 names. Raises `ValueError` when that is no list of checksums."""
    items = []
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        match = re.fullmatch(r"([0-9a-f]{32})\s+\*?(?:\./)?(\S.*?)\s*", line)
        if match is None:
            raise ValueError(f"line {number} is no MD5 and file name: {line[:60]!r}")
        digest, path = match[1], match[2].removeprefix("CAMELYON16/")
        if found := _CAMELYON_FILE.fullmatch(path):
            kind = found["slide"] or found["outline"] or "test"
            size = _CAMELYON_SLIDE if found["slide"] else 500 * KB
            items.append(Item(path, (base + path,), f"md5:{digest}", size, "test" if kind == "test" else "train"))
    if not items:
        raise ValueError("it names no slide (images/normal_001.tif and so on)")
    return sorted(items, key=lambda item: item.name)


def chosen(known: DataSet, items: Sequence[Item], splits: Sequence[str], patterns: Sequence[str]) -> list[Item]:
    """The items of these splits whose path or file name matches one of the patterns (none: all). Raises `UserError` for nothing."""
    available = sorted({item.split for item in items} - {""})
    for split in splits:
        if split not in available:
            kinds = f"its splits are {', '.join(available)}" if available else "its files hold all splits"
            raise UserError(f"--split {split}: {known.name} has no files of that split; {kinds}")

    def matches(item: Item) -> bool:
        both = (item.name, PurePosixPath(item.name).name)
        return not patterns or any(fnmatchcase(name, pattern) for name in both for pattern in patterns)

    kept = [item for item in items if (not splits or item.split in splits) and matches(item)]
    if not kept:
        choice = ", ".join([*splits, *patterns])
        raise UserError(f"{known.name} has no file that matches {choice}; see gan-uad download {known.name} --list")
    return kept


def readable(size: float) -> str:
    """`6400000000` -> "6.4 GB"."""
    for unit, name in ((GB, "GB"), (MB, "MB"), (KB, "KB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size:.0f} bytes"
