"""Patch sets through their public door: a path in, uint8 pictures and a training stream out."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gan_uad.config import DataConfig
from gan_uad.data.images import BadImage, decode, preprocess
from gan_uad.data.layouts import is_normal_name
from gan_uad.data.manifest import Manifest
from gan_uad.data.patches import PatchSet, load_patches
from gan_uad.data.sources import open_source
from gan_uad.errors import UserError


def picture(seed: int, width: int = 8, height: int = 8) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(array: Any, mode: str | None = None, format: str = "PNG", **options: Any) -> bytes:
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, format, **options)
    return buffer.getvalue()


def write(root: Path, names: dict[str, bytes] | list[str]) -> Path:
    contents = names if isinstance(names, dict) else {name: png(picture(k)) for k, name in enumerate(names)}
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def load(path: Path, tmp_path: Path, resolution: int = 8, **settings: Any) -> PatchSet:
    return load_patches(DataConfig(path=str(path), **settings), resolution, cache=tmp_path / "cache")


def index(tmp_path: Path, *lines: str, header: str = "image,group,label,split") -> Path:
    """A folder with pictures a.png to d.png and the given index.csv."""
    root = write(tmp_path / "set", ["a.png", "b.png", "c.png", "d.png"])
    (root / "index.csv").write_text("\n".join([header, *lines]) + "\n")
    return root


# ---------------------------------------------------------------- layouts


def test_class_folders_are_labelled_and_split(tmp_path: Path) -> None:
    root = write(tmp_path / "set", [f"Normal/{k}.png" for k in range(20)] + [f"tumour/deep/{k}.JPG" for k in range(10)])
    patches = load(root, tmp_path)
    assert Counter(patches.manifest.label.tolist()) == {0: 20, 1: 10}
    assert {split: (s.get("Normal"), s.get("tumour")) for split, s in patches.manifest.counts().items()} == {
        "train": (12, 6), "val": (4, 2), "test": (4, 2)
    }  # fmt: skip
    assert any("normal: Normal; anomalous: tumour" in note for note in patches.notes)


@pytest.mark.parametrize(
    "name", ["normal", "Benign", "GOOD", "healthy", "0", "non_idc", "Non-Tumor", "colon_n", "0_normal", "NEGATIVE"]
)
def test_names_of_normal_tissue(name: str) -> None:
    assert is_normal_name(name)


@pytest.mark.parametrize(
    "name", ["abnormal", "Ungood", "not_normal", "non_benign", "1", "idc", "nonnormal", "necrosis"]
)
def test_names_that_are_not_normal(name: str) -> None:
    assert not is_normal_name(name)


def test_undecidable_classes_are_asked_for_by_name(tmp_path: Path) -> None:
    root = write(tmp_path / "set", ["alpha/1.png", "beta/1.png"])
    with pytest.raises(UserError, match=r"alpha, beta.*-o data\.normal_classes=\[alpha\]"):
        load(root, tmp_path)
    assert load(root, tmp_path, normal_classes=["beta"]).manifest.label.tolist() == [1, 0]
    with pytest.raises(UserError, match=r"no class 'betta'.*'beta'"):
        load(root, tmp_path, normal_classes=["betta"])


def test_split_folders_keep_their_splits(tmp_path: Path) -> None:
    root = write(
        tmp_path / "set",
        ["train/good/1.png", "valid/good/2.png", "valid/bad/3.png", "test/good/4.png", "test/bad/5.png"],
    )
    found = load(root, tmp_path).manifest
    by_name = dict(zip(found.image, zip(found.split, found.label.tolist(), strict=True), strict=True))
    assert by_name == {
        "train/good/1.png": ("train", 0), "valid/good/2.png": ("val", 0), "valid/bad/3.png": ("val", 1),
        "test/good/4.png": ("test", 0), "test/bad/5.png": ("test", 1),
    }  # fmt: skip


def test_missing_validation_split_is_cut_out_of_train(tmp_path: Path) -> None:
    root = write(tmp_path / "set", [f"train/good/{k}.png" for k in range(40)] + ["test/good/1.png", "test/bad/2.png"])
    patches = load(root, tmp_path)
    assert Counter(patches.manifest.split) == {"train": 30, "val": 10, "test": 2}
    assert any("10 images are cut out of train" in note for note in patches.notes)


@pytest.mark.parametrize(
    "masks", [("ground_truth/crack/7_mask.png", "test/crack/7.png"), ("test/crack/label/7.png", "test/crack/img/7.png")]
)
def test_masks_of_mvtec_and_bmad(tmp_path: Path, masks: tuple[str, str]) -> None:
    marked = np.zeros((8, 8), np.uint8)
    marked[:4, 2:6] = 255
    names = {
        "train/good/1.png": png(picture(1)),
        "test/good/7.png": png(picture(2)),
        masks[1]: png(picture(3)),
        masks[0]: png(marked),
    }
    patches = load(write(tmp_path / "set", names), tmp_path, resolution=4)
    assert len(patches) == 3
    found = patches.select("test").masks()
    expected = np.zeros((4, 4), bool)
    expected[:2, 1:3] = True
    by_label = dict(zip(patches.select("test").manifest.label.tolist(), found, strict=True))
    assert not by_label[0].any()
    np.testing.assert_array_equal(by_label[1], expected)


def test_an_anomalous_patch_without_mask_is_not_taken_for_empty(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"bad/1\.png is not normal and has no mask"):
        load(write(tmp_path / "set", ["good/1.png", "bad/1.png"]), tmp_path).masks()


def test_idc_names(tmp_path: Path) -> None:
    names = [
        f"{p}/{c}/{p}_idx5_x{x}_y51_class{c}.png" for p in ("8863", "8864", "8865") for c in (0, 1) for x in (1, 101)
    ]
    twice = f"IDC_regular_ps50_idx5/{names[0]}"
    patches = load(write(tmp_path / "set", [*names, twice]), tmp_path)
    found = patches.manifest
    assert len(found) == 12
    row = found.image.index("8864/1/8864_idx5_x101_y51_class1.png")
    assert (found.group[row], found.slide[row], found.x[row], found.y[row], found.label[row]) == (
        "8864",
        "8864",
        101,
        51,
        1,
    )
    assert not found.groups_on_two_sides()
    assert set(found.split) == {"train", "val", "test"}
    with pytest.raises(UserError, match="1 such as readme"):
        load(write(tmp_path / "set", ["readme.png"]), tmp_path)


def test_flat_folder_single_file_and_wrapped_zip(tmp_path: Path) -> None:
    root = write(tmp_path / "set", ["a.png", "b.webp", "notes.txt", ".hidden.png"])
    flat = load(root, tmp_path)
    assert flat.manifest.image == ["a.png", "b.webp"]
    assert flat.manifest.label.tolist() == [-1, -1]
    assert any("labels are unknown" in note for note in flat.notes)
    assert load(root / "a.png", tmp_path).manifest.image == ["a.png"]
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        for name in ("outer/set/good/1.png", "outer/set/bad/1.png", "__MACOSX/outer/set/good/._1.png"):
            archive.writestr(name, png(picture(1)))
    assert load(tmp_path / "w.zip", tmp_path).manifest.klass == ["bad", "good"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.png", "good/b.png"], r"1 images such as a\.png lie beside the folder good"),
        (["train/good/a.png", "other/b.png"], "train are splits, but what is other"),
        (["train/good/a.png", "loose.png", "test/good/b.png"], r"loose\.png lies outside"),
        (["a.txt"], r"holds no images \(looked for \.png \.jpg"),
    ],
)
def test_ambiguous_folders_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(write(tmp_path / "set", names), tmp_path)


@pytest.mark.parametrize("name", ["missing", "text.txt", "bad.zip", "bad.npz", "bad_x.h5", "nothing.h5"])
def test_what_is_no_patch_set_is_said_in_one_line(tmp_path: Path, name: str) -> None:
    if name != "missing":
        (tmp_path / name).write_bytes(b"not what the name says")
    (tmp_path / "bad_y.h5").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        load(tmp_path / name, tmp_path)
    assert name in caught.value.message
    assert "\n" not in caught.value.message


# ---------------------------------------------------------------- index.csv


def test_index_csv_and_what_it_holds(tmp_path: Path) -> None:
    header = "image,group,label,split,slide,x,y,level,tissue,class,mask,remark"
    root = index(tmp_path, "a.png,p1,0,train,s1,10,20,0,0.5,ok,,hm", "b.png,,1,test,s2,,,,,bad,c.png,", header=header)
    found = load(root, tmp_path).manifest
    assert (found.image, found.group, found.split, found.klass) == (
        ["a.png", "b.png"],
        ["p1", "s2"],
        ["train", "test"],
        ["ok", "bad"],
    )
    assert (found.x[0], found.y[0], found.tissue[0], found.mask) == (10, 20, 0.5, ["", "c.png"])
    assert np.isnan(found.x[1])
    found.to_csv(tmp_path / "again.csv")
    again = Manifest.from_csv((tmp_path / "again.csv").read_bytes(), "again")
    for name in ("image", "group", "split", "klass", "slide", "mask"):
        assert getattr(again, name) == getattr(found, name)
    for name in ("label", "x", "y", "tissue"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a.png,,0,train", "b.png,,2,train"], r"index\.csv:3: label '2'"),
        (["a.png,,0,training day"], r"index\.csv:2: split 'training day'"),
        (["a.png,,0,train", "a.png,,0,train"], r"index\.csv:3: 'a\.png' is named twice \(first in line 2\)"),
        (["a.png,,0,train", "gone.png,,0,train"], r"index\.csv:3: 'gone\.png' is not there"),
        (["../a.png,,0,train"], r"index\.csv:2: '\.\./a\.png' lies outside"),
        (["a.png,,0"], r"index\.csv:2: more or fewer cells"),
        (["a.png,,0,train,more"], r"index\.csv:2: more or fewer cells"),
        ([",,0,train"], r"index\.csv:2: the image name is empty"),
        ([], r"index\.csv names no image"),
    ],
)
def test_index_csv_errors_name_the_line(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(index(tmp_path, *lines), tmp_path)


def test_index_csv_with_a_wrong_header(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"index\.csv:1: column 'image' is missing \(did you mean 'images'"):
        load(index(tmp_path, "a.png,,0,train", header="images,group,label,split"), tmp_path)


def test_a_group_on_two_sides_is_an_error(tmp_path: Path) -> None:
    root = index(tmp_path, "a.png,p7,0,train", "b.png,p7,1,test", "c.png,p8,0,val")
    with pytest.raises(UserError, match=r"1 groups lie on two sides.*p7 in test and train"):
        load(root, tmp_path)


# ---------------------------------------------------------------- splits


def test_splits_are_by_group_even_in_label_and_repeatable() -> None:
    rng = np.random.default_rng(3)
    group = [f"g{g}" for g in rng.integers(0, 60, 900)]
    manifest = Manifest.of([str(k) for k in range(900)], group=group, label=[int(g[1:]) % 3 == 0 for g in group])
    split = manifest.with_splits((0.6, 0.2, 0.2), seed=1)
    assert not split.groups_on_two_sides()
    for name, share in (("train", 0.6), ("val", 0.2), ("test", 0.2)):
        for label in (0, 1):
            assert len(split.where(name, label)) / len(split.where(label=label)) == pytest.approx(share, abs=0.05)
    assert split.split == manifest.with_splits((0.6, 0.2, 0.2), seed=1).split
    assert split.split != manifest.with_splits((0.6, 0.2, 0.2), seed=2).split
    assert "test" not in manifest.with_splits((0.75, 0.25, 0.0), seed=1).split


def test_rows_without_a_split_follow_their_group() -> None:
    manifest = Manifest.of(list("abcd"), group=["p", "p", "q", "q"], split=["test", "", "", "train"])
    assert manifest.with_splits((0.6, 0.2, 0.2), 0).split == ["test", "test", "train", "train"]


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
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"hello", "is no PNG"),
        (png(picture(0, 64, 64))[:-4000], "truncated"),
        (png(Image.new("F", (4, 4)), format="TIFF"), "'F' is not supported"),
        (png(picture(0), format="TIFF", save_all=True, append_images=[Image.new("RGB", (8, 8))]), "2 pages"),
        (png(picture(0), format="GIF"), "is no PNG"),
    ],
)
def test_bad_images_say_why(content: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=f"p7.*{reason}") as caught:
        decode(content, "p7.png")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.name, again.reason) == (caught.value.name, caught.value.reason)


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
    with pytest.raises(BadImage, match="96x96 px is smaller than the centre crop of 128 px"):
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
    with pytest.raises(UserError, match=r"2 broken images.*bad/c\.png: the file is empty"):
        load(root, tmp_path, strict=True)
    with pytest.raises(UserError, match="none of 1 images can be used"):
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
    assert any("1 images left out with less tissue" in note for note in fewer.notes)


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
    with pytest.raises(UserError, match="leads out of the archive"):
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
    patches = load(path, tmp_path)
    assert patches.manifest.label.tolist() == [0, 1, 1, 0, 1, 1] * 3
    assert Counter(patches.manifest.split) == {"train": 6, "val": 6, "test": 6}
    assert any("normal: 0; anomalous: 1, 2" in note for note in patches.notes)
    expected = np.random.default_rng(1).integers(0, 256, (6, 8, 8), dtype=np.uint8)
    np.testing.assert_array_equal(patches.select("val").images, np.repeat(expected[..., None], 3, axis=3))
    assert load(path, tmp_path, normal_classes=["1", "2"]).manifest.label.tolist()[:3] == [1, 0, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": np.array([{"a": 1}] * 6, dtype=object)}, "pickled objects, which are never loaded"),
        ({"val_images": np.zeros((6, 8, 8), np.float32)}, r"val_images must be uint8 .* not float32 \[6, 8, 8\]"),
        ({"test_labels": np.zeros((6, 14), np.uint8)}, "one label an image"),
        ({"test_images": np.zeros((6, 8, 8, 8), np.uint8)}, "test_images must be uint8"),
    ],
)
def test_npz_that_is_not_medmnist(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
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
    one = load(root / "camelyonpatch_level_2_split_test_x.h5", tmp_path)
    assert Counter(one.manifest.split) == {"test": 4}
    (root / "camelyonpatch_level_2_split_test_y.h5").unlink()
    with pytest.raises(UserError, match=r"split_test_x\.h5 needs .*split_test_y\.h5"):
        load(root, tmp_path)


def test_pcam_slides_on_two_sides_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="s1 in test and train"):
        load(pcam(tmp_path / "pcam", ["s1", "s2", "s1"]), tmp_path)
