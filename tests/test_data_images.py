"""Images of a patch set: pixel types, geometry, what is broken or left out; zips and arrays."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patch_tools import index, load, picture, png, refused, write
from PIL import Image

from gan_uad.config import DataConfig
from gan_uad.data.images import BadImage, decode, decode_mask, preprocess
from gan_uad.data.sources import open_source

# ---------------------------------------------------------------- images


def test_every_pixel_type_becomes_rgb() -> None:
    grey = (np.arange(64).reshape(8, 8) * 4).astype(np.uint8)
    wide = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040
    rgb = picture(0)
    three = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(decode(png(grey), "x"), three)
    np.testing.assert_array_equal(decode(png(grey > 100), "x"), np.repeat(((grey > 100) * 255)[..., None], 3, axis=2))
    scaled = np.round(wide / 65535 * 255).astype(np.uint8)
    np.testing.assert_array_equal(decode(png(wide), "x")[..., 0], scaled)
    np.testing.assert_array_equal(decode(png(wide, format="TIFF"), "x")[..., 2], scaled)
    for kind in ("BMP", "TIFF"):
        np.testing.assert_array_equal(decode(png(rgb, format=kind), "x"), rgb)
    np.testing.assert_array_equal(decode(png(rgb, format="WEBP", lossless=True), "x"), rgb)
    palette = Image.fromarray(rgb).quantize(16)
    np.testing.assert_array_equal(decode(png(palette), "x"), np.asarray(palette.convert("RGB")))
    cmyk = Image.fromarray(rgb).convert("CMYK")
    np.testing.assert_array_equal(decode(png(cmyk, format="TIFF"), "x"), np.asarray(cmyk.convert("RGB")))


def test_alpha_is_composited_on_white() -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = 255, 0, 51
    assert decode(png(rgba), "x")[0, :, 0].tolist() == [0, 255, 204]
    keyed = Image.fromarray(np.array([[7, 9]], np.uint8))
    assert decode(png(keyed, transparency=7), "x")[0, :, 0].tolist() == [255, 9]


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb = picture(0, 4, 2)
    np.testing.assert_array_equal(decode(png(rgb, exif=exif), "x"), np.rot90(rgb, -1))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "empty"),
        (b"hello", "PNG"),
        (png(picture(0, 64, 64))[:-4000], "truncated"),
        (png(Image.new("F", (4, 4)), format="TIFF"), "'F'"),
        (png(picture(0), format="TIFF", save_all=True, append_images=[Image.new("RGB", (8, 8))]), "2 pages"),
        (png(picture(0), format="GIF"), "PNG"),
    ],
)
def test_bad_images_say_why(content: bytes, named: str) -> None:
    with refused("p7.png", named, error=BadImage):
        decode(content, "p7.png")


def test_a_bad_image_survives_pickling() -> None:
    again = pickle.loads(pickle.dumps(BadImage("p7.png", "is empty")))
    assert (again.name, again.reason, again.message) == ("p7.png", "is empty", "p7.png: is empty")


@pytest.mark.parametrize("rule", ["bicubic", "bilinear", "lanczos", "box"])
def test_preprocess_is_pillow(rule: str) -> None:
    image = picture(0, 50, 40)
    square = Image.fromarray(image[:, 5:45])
    expected = np.asarray(square.resize((16, 16), getattr(Image.Resampling, rule.upper())))
    np.testing.assert_array_equal(preprocess(image, DataConfig(resize=rule), 16), expected)


def test_preprocess_crop_and_grey() -> None:
    image = picture(0, 96, 96)
    np.testing.assert_array_equal(preprocess(image, DataConfig(crop="center"), 64), image[16:80, 16:80])
    half = preprocess(image, DataConfig(crop="center", crop_size=32, resize="box"), 16)
    np.testing.assert_allclose(
        half, image[32:64, 32:64].reshape(16, 2, 16, 2, 3).mean((1, 3)), atol=1
    )  # Pillow rounds twice
    grey = preprocess(image, DataConfig(grayscale=True), 96)
    luma = np.round(image @ np.array([0.299, 0.587, 0.114]))
    assert np.abs(grey.astype(int) - luma[..., None]).max() <= 1
    with refused("96x96 px", "128 px", error=BadImage):
        preprocess(image, DataConfig(crop="center"), 128)


def test_bad_images_are_skipped_listed_or_refused(tmp_path: Path) -> None:
    contents = {
        "good/a.png": png(picture(1)),
        "good/b.png": png(picture(2))[:60],
        "bad/c.png": b"",
        "bad/d.png": png(picture(3)),
    }
    root = write(tmp_path / "set", contents)
    for _ in "built", "cached":
        patches = load(root, tmp_path)
        assert patches.manifest.image == ["bad/d.png", "good/a.png"]
        assert [name for name, _ in patches.skipped] == ["bad/c.png", "good/b.png"]
        np.testing.assert_array_equal(patches.images, [picture(3), picture(1)])
    assert any("2 broken images skipped" in note for note in patches.notes)
    with refused(str(root), "data.strict", "bad/c.png"):
        load(root, tmp_path, strict=True)
    with refused(str(tmp_path / "all"), "good/a.png"):
        load(write(tmp_path / "all", {"good/a.png": b""}), tmp_path)


def test_odd_shapes_and_white_patches_are_noted(tmp_path: Path) -> None:
    white = np.full((8, 8, 3), 240, np.uint8)
    white[:2] = 100  # a quarter is tissue
    root = write(tmp_path / "set", {"good/a.png": png(picture(1, 12, 8)), "good/b.png": png(white)})
    patches = load(root, tmp_path)
    np.testing.assert_array_equal(patches.images[0], picture(1, 12, 8)[:, 2:10])
    assert any("1 images are not square" in note for note in patches.notes)
    assert len(load(root, tmp_path, min_tissue=0.25)) == 2
    fewer = load(root, tmp_path, min_tissue=0.26)
    assert fewer.manifest.image == ["good/a.png"]
    assert any(note.startswith("1 images left out") and "0.26" in note for note in fewer.notes)


def test_the_tissue_column_decides_where_there_is_one(tmp_path: Path) -> None:
    root = index(tmp_path, "a.png,,0,train,0.9", "b.png,,0,train,0.1", header="image,group,label,split,tissue")
    assert load(root, tmp_path, min_tissue=0.5).manifest.image == ["a.png"]


# ---------------------------------------------------------------- zips and arrays


@pytest.mark.parametrize(
    "evil", ["../evil.png", "good/../../evil.png", "/etc/evil.png", "C:\\evil.png", "..\\evil.png"]
)
def test_a_zip_that_leads_out_of_itself_is_refused(tmp_path: Path, evil: str) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("good/a.png", png(picture(0)))
        archive.writestr(zipfile.ZipInfo(evil), png(picture(0)))
    with refused("z.zip", repr(evil)):
        load(tmp_path / "z.zip", tmp_path)


def test_a_zip_equals_its_folder_and_survives_pickling(tmp_path: Path) -> None:
    root = index(tmp_path, "a.png,p,0,train", "c.png,q,1,test")
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(root.iterdir()):
            archive.write(file, f"inner/{file.name}")
    folder, packed = load(root, tmp_path), load(tmp_path / "z.zip", tmp_path)
    np.testing.assert_array_equal(folder.images, packed.images)
    assert packed.manifest.image == ["inner/a.png", "inner/c.png"]
    source = pickle.loads(pickle.dumps(open_source(tmp_path / "z.zip", DataConfig())))
    np.testing.assert_array_equal(source.read(1), picture(2))


def test_a_damaged_zip_member_is_a_bad_image(tmp_path: Path) -> None:
    path = tmp_path / "z.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("good/a.png", png(picture(0)))
        archive.writestr("good/b.png", png(picture(1)))
    content = path.read_bytes()
    path.write_bytes(content[:80] + bytes([content[80] ^ 255]) + content[81:])
    patches = load(path, tmp_path)
    assert patches.manifest.image == ["good/b.png"]
    assert "CRC" in patches.skipped[0][1]


def medmnist(path: Path, **changes: Any) -> Path:
    arrays: dict[str, Any] = {}
    for k, split in enumerate(("train", "val", "test")):
        arrays[f"{split}_images"] = np.random.default_rng(k).integers(0, 256, (6, 8, 8), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.array([[0], [1], [2], [0], [1], [2]], np.uint8)
    np.savez_compressed(path, **(arrays | changes))
    return path


def test_medmnist_npz(tmp_path: Path) -> None:
    path = medmnist(tmp_path / "m.npz")
    patches = load(path, tmp_path, normal_classes=["0"])
    assert patches.manifest.label.tolist() == [0, 1, 1, 0, 1, 1] * 3
    assert Counter(patches.manifest.split) == {"train": 6, "val": 6, "test": 6}
    assert any("normal: 0; anomalous: 1, 2" in note for note in patches.notes)
    expected = np.random.default_rng(1).integers(0, 256, (6, 8, 8), dtype=np.uint8)
    np.testing.assert_array_equal(patches.select("val").images, np.repeat(expected[..., None], 3, axis=3))
    assert load(path, tmp_path, normal_classes=["1", "2"]).manifest.label.tolist()[:3] == [1, 0, 0]


def numbered(path: Path, classes: int) -> Path:
    return medmnist(path, **{f"{s}_labels": np.arange(6)[:, None] % classes for s in ("train", "val", "test")})


@pytest.mark.parametrize(
    ("name", "classes", "normal"),
    [
        ("breastmnist", 2, 1),
        ("breastmnist_64", 2, 1),
        ("OCTMNIST_224", 4, 3),
        ("pneumoniamnist", 2, 0),
        ("dermamnist_28", 6, 5),
    ],
)
def test_the_catalogue_knows_normal_classes(tmp_path: Path, name: str, classes: int, normal: int) -> None:
    patches = load(numbered(tmp_path / f"{name}.npz", classes), tmp_path)
    assert patches.manifest.label.tolist()[:6] == [int(k % classes != normal) for k in range(6)]
    assert any(f"class {normal} " in note and name in note for note in patches.notes)
    told = load(tmp_path / f"{name}.npz", tmp_path, normal_classes=["0"])
    assert told.manifest.label.tolist()[:2] == [0, 1]


@pytest.mark.parametrize(
    ("name", "classes"),
    [("m", 2), ("bloodmnist", 6), ("tissuemnist_64", 6), ("my_breastmnist", 2), ("breastmnist_64 (1)", 2), ("breastmnist", 3),
     ("pathmnist", 6)],
)  # fmt: skip
def test_class_numbers_of_other_files_are_never_guessed(tmp_path: Path, name: str, classes: int) -> None:
    with refused(name, "0, 1", "-o data.normal_classes=[0]"):
        load(numbered(tmp_path / f"{name}.npz", classes), tmp_path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"train_labels": np.array([{"a": 1}] * 6, dtype=object)}, ("train_labels", "pickled")),
        ({"val_images": np.zeros((6, 8, 8), np.float32)}, ("val_images", "uint8", "float32 [6, 8, 8]")),
        ({"test_labels": np.zeros((6, 14), np.uint8)}, ("test_labels", "[6, 14]")),
        ({"val_labels": np.array([[0], [1], [2], [0], [1], [-1]], np.int8)}, ("val_labels", "-1")),
        ({"test_images": np.zeros((6, 8, 8, 8), np.uint8)}, ("test_images", "uint8", "[6, 8, 8, 8]")),
    ],
)
def test_npz_that_is_not_medmnist(tmp_path: Path, changes: dict[str, Any], named: tuple[str, ...]) -> None:
    with refused("m.npz", *named):
        load(medmnist(tmp_path / "m.npz", **changes), tmp_path)


def pcam(root: Path, wsi: list[str] | None = None) -> Path:
    import h5py

    root.mkdir()
    for k, split in enumerate(("train", "valid", "test")):
        stem = root / f"camelyonpatch_level_2_split_{split}"
        with h5py.File(f"{stem}_x.h5", "w") as file:
            file["x"] = np.stack([picture(10 * k + i) for i in range(4)])
        with h5py.File(f"{stem}_y.h5", "w") as file:
            file["y"] = np.array([0, 1, 0, 1], np.uint8).reshape(4, 1, 1, 1)
        if wsi:
            rows = "".join(f"{i},0,0,True,True,{wsi[k]}\n" for i in range(4))
            Path(f"{stem}_meta.csv").write_text(",coord_y,coord_x,tumor_patch,center_tumor_patch,wsi\n" + rows)
    return root


def test_pcam_hdf5(tmp_path: Path) -> None:
    root = pcam(tmp_path / "pcam", ["s1", "s2", "s3"])
    patches = load(root, tmp_path)
    assert patches.manifest.counts() == {s: {"normal": 2, "anomalous": 2} for s in ("train", "val", "test")}
    np.testing.assert_array_equal(patches.select("val").images, [picture(10 + i) for i in range(4)])
    assert set(patches.select("test").manifest.group) == {"s3"}
    assert not any("left out" in note for note in patches.notes)
    write(root, ["normal/1.png"])
    assert any("left out" in note and "normal" in note for note in load(root, tmp_path).notes)
    one = load(root / "camelyonpatch_level_2_split_test_x.h5", tmp_path)
    assert Counter(one.manifest.split) == {"test": 4}
    (root / "camelyonpatch_level_2_split_test_y.h5").unlink()
    with refused("split_test_x.h5", "split_test_y.h5"):
        load(root, tmp_path)


def test_labels_of_another_size_are_not_read(tmp_path: Path) -> None:
    """They may declare any size: this one would take a terabyte."""
    import h5py

    root = pcam(tmp_path / "pcam")
    stem = root / "camelyonpatch_level_2_split_test"
    with h5py.File(f"{stem}_y.h5", "w") as file:
        file.create_dataset("y", (10**12, 1, 1, 1), np.uint8, chunks=(10**6, 1, 1, 1))
    with refused(f"{stem}_y.h5", "4 images", "1000000000000"):
        load(root, tmp_path)
    for key in "xy":
        (root / f"camelyonpatch_level_2_split_train_{key}.h5").rename(root / f"train_test_{key}.h5")
    for key in "xy":
        Path(f"{stem}_{key}.h5").unlink()
    with refused("train_test_x.h5", "test and train"):
        load(root, tmp_path)


@pytest.mark.parametrize(("column", "named"), [("wsi", "4 rows"), ("slide", "'wsi'")])
def test_a_table_of_slides_that_does_not_fit(tmp_path: Path, column: str, named: str) -> None:
    root = pcam(tmp_path / "pcam")
    meta = root / "camelyonpatch_level_2_split_test_meta.csv"
    meta.write_text(f"x,{column}\n1,s1\n2,s2\n")
    with refused(str(meta), named):
        load(root, tmp_path)


def test_arrays_survive_pickling(tmp_path: Path) -> None:
    for path in (medmnist(tmp_path / "m.npz"), pcam(tmp_path / "pcam")):
        source = open_source(path, DataConfig(normal_classes=["0"] if path.suffix else []))
        again = pickle.loads(pickle.dumps(source))
        np.testing.assert_array_equal(again.read(5), source.read(5))
        assert again.fingerprint() == source.fingerprint()


def test_pcam_slides_on_two_sides_are_refused(tmp_path: Path) -> None:
    with refused("s1 in test and train"):
        load(pcam(tmp_path / "pcam", ["s1", "s2", "s1"]), tmp_path)


@pytest.mark.parametrize("key", ["x", "y"])
@pytest.mark.parametrize(
    "kind", ["external storage", "virtual", "soft link", "external link", "dangling", "group", "datatype"]
)
def test_hdf5_values_outside_of_the_file_are_not_read(tmp_path: Path, kind: str, key: str) -> None:
    import h5py

    values = {"x": np.zeros((4, 8, 8, 3), np.uint8), "y": np.zeros((4, 1, 1, 1), np.uint8)}
    for name, array in values.items():
        for stem in ("a", "other"):
            folder = tmp_path if stem == "a" else tmp_path / "elsewhere"
            folder.mkdir(exist_ok=True)
            with h5py.File(folder / f"{stem}_{name}.h5", "w") as file:
                file.create_dataset(name, data=array, chunks=array.shape if name == "x" else None)
    load(tmp_path / "a_x.h5", tmp_path)
    target, array = tmp_path / "elsewhere" / f"other_{key}.h5", values[key]
    (tmp_path / "raw.bin").write_bytes(array.tobytes())
    with h5py.File(tmp_path / f"a_{key}.h5", "w") as file:
        file["own"] = array
        if kind == "external storage":
            file.create_dataset(key, array.shape, np.uint8, external=[(str(tmp_path / "raw.bin"), 0, array.nbytes)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout(array.shape, np.uint8)
            layout[:] = h5py.VirtualSource(str(target), key, array.shape)
            file.create_virtual_dataset(key, layout)
        elif kind == "group":
            file.create_group(key)
        elif kind == "datatype":
            file[key] = np.dtype("uint8")
        else:
            links = {"soft link": h5py.SoftLink("/own"), "dangling": h5py.SoftLink("/none")}
            file[key] = links.get(kind) or h5py.ExternalLink(str(target), key)
    with refused(f"a_{key}.h5", repr(key), "" if kind == "dangling" else kind):
        load(tmp_path / "a_x.h5", tmp_path)


# ---------------------------------------------------------------- masks


def saved(array: Any, mode: str | None = None, ending: str = "png", **options: Any) -> bytes:
    """The content of an image file."""
    image, file = Image.fromarray(array) if mode is None else Image.fromarray(array).convert(mode), io.BytesIO()
    image.save(file, {"jpg": "jpeg", "tif": "tiff"}.get(ending, ending), **options)
    return file.getvalue()


MARKED = np.zeros((16, 16), bool)
MARKED[4:12, 6:14] = True
GREY = MARKED.astype(np.uint8) * 255


def transparent(colour: int, alpha: Any = GREY) -> Any:
    return np.dstack([np.full((16, 16, 3), colour, np.uint8), alpha])


@pytest.mark.parametrize(
    "content",
    [
        saved(GREY), saved(GREY, "1"), saved(GREY, "P"), saved(GREY, "RGB"), saved(MARKED.astype(np.uint8)), saved(GREY, ending="tif"),
        saved(GREY // 255 * 100), saved(MARKED.astype(np.uint16)), saved(MARKED.astype(np.uint16) * 65535), saved(GREY, "LA"),
        saved(GREY, ending="jpg", quality=75), saved(transparent(255)), saved(transparent(0)), saved(transparent(255), "LA"),
        saved(np.dstack([GREY, GREY, GREY, GREY])), saved(np.dstack([GREY, GREY * 0, GREY * 0, GREY | 255])),
        saved(transparent(0, GREY // 255 * 200 + 20)), saved(np.where(MARKED, 200, 60).astype(np.uint8)),
    ],
)  # fmt: skip
def test_where_a_mask_marks(content: bytes) -> None:
    np.testing.assert_array_equal(decode_mask(content, "m"), MARKED)


@pytest.mark.parametrize("content", [saved(GREY * 0), saved(GREY * 0, ending="jpg"), saved(transparent(255, GREY * 0))])
def test_a_mask_that_marks_nothing(content: bytes) -> None:
    assert not decode_mask(content, "m").any()


@pytest.mark.parametrize(
    "content",
    [
        saved(np.arange(256, dtype=np.uint8).reshape(16, 16) % 3),
        saved(np.where(MARKED, 1, np.where(MARKED.T, 255, 0)).astype(np.uint8)),
        saved(np.full((16, 16), 90, np.uint8)),
        saved(GREY // 3, ending="jpg"),
        saved(np.dstack([GREY, GREY, GREY, np.where(np.arange(16) < 12, 255, 0).astype(np.uint8)[None].repeat(16, 0)])),
    ],
    ids=["classes", "classes and void", "grey", "faint", "alpha and colour"],
)
def test_a_mask_that_can_be_read_in_two_ways(content: bytes) -> None:
    with refused("m.png"):
        decode_mask(content, "m.png")


def test_a_mask_of_another_size_than_its_image(tmp_path: Path) -> None:
    content = {
        "test/good/1.png": png(picture(1)),
        "test/bad/2.png": png(picture(2)),
        "ground_truth/bad/2_mask.png": png(GREY[:4]),
    }
    with refused("2_mask.png", "16x4 px", "test/bad/2.png", "8x8 px"):
        load(write(tmp_path / "set", {"train/good/0.png": png(picture(0)), **content}), tmp_path).masks()


def test_a_mask_of_an_image_that_lies_on_its_side(tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((8, 16, 3), np.uint8))
    exif, file = image.getexif(), io.BytesIO()
    exif[0x0112] = 6
    image.save(file, "png", exif=exif)
    content = {"test/good/1.png": png(picture(1)), "test/bad/2.png": file.getvalue()}
    for name, shape in (("upright", (16, 8)), ("stored", (8, 16))):
        mask = {"train/good/0.png": png(picture(0)), "ground_truth/bad/2_mask.png": png(np.full(shape, 255, np.uint8))}
        patches = load(write(tmp_path / name, content | mask), tmp_path)
        if name == "upright":
            assert patches.masks().any()
        else:
            with refused("2_mask.png"):
                patches.masks()
