"""Patch sets by `load_patches`: folders, names, index.csv, splits."""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from patch_tools import index, load, picture, png, refused, write

from gan_uad.data.layouts import is_normal_name
from gan_uad.data.manifest import Manifest

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
    "name",
    [
        "normal",
        "Benign",
        "GOOD",
        "healthy",
        "normals",
        "non_idc",
        "Non-Tumor",
        "colon_n",
        "0_normal",
        "NEGATIVE",
        "Normal ",
        "tumor_negative",
        "class 0 negative",
    ],
)
def test_names_of_normal_tissue(name: str) -> None:
    assert is_normal_name(name)


@pytest.mark.parametrize(
    "name", ["abnormal", "Ungood", "not_normal", "non_benign", "1", "idc", "nonnormal", "necrosis"]
)
def test_names_that_are_not_normal(name: str) -> None:
    assert not is_normal_name(name)


@pytest.mark.parametrize(
    "name", ["0", "1", "07", "normal_vs_tumour", "benign_malignant", "tumour_and_non_tumour", "non_small_cell_lung_cancer",
             "abnormal_vs_normal", "nonidc_idc", "pathological_normal", "normal-like", "near_normal", "Ab-normal", "normal adjacent",
     "HER2_negative", "triple negative", "node_negative", "background", "other", "artefacts", "tumor_n", "white patches"]
)  # fmt: skip
def test_names_that_say_nothing_are_never_guessed(tmp_path: Path, name: str) -> None:
    """Beside a class that is known to be normal, too."""
    assert not is_normal_name(name)
    for split in ("", "train/"):
        root = write(tmp_path / f"set{len(split)}", [f"{split}{name}/1.png", f"{split}normal/2.png"])
        with refused(str(root), name, "-o data.normal_classes=[normal, "):
            load(root, tmp_path)
        found = load(root, tmp_path, normal_classes=[name]).manifest
        assert dict(zip(found.klass, found.label.tolist(), strict=True)) == {name: 0, "normal": 1}


def test_benign_beside_normal_is_asked_about(tmp_path: Path) -> None:
    """A benign lesion beside normal tissue, as in BACH; alone it is the normal class, as of the skin sets."""
    root = write(tmp_path / "set", [f"{name}/1.png" for name in ("Benign", "InSitu", "Invasive", "Normal")])
    with refused("Benign", "-o data.normal_classes=[Normal"):
        load(root, tmp_path)
    assert load(root, tmp_path, normal_classes=["Normal"]).manifest.label.tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize("name", ["unlabeled", "Unknown", "unclassified patches"])
def test_a_class_of_unlabelled_images_has_no_label(tmp_path: Path, name: str) -> None:
    patches = load(write(tmp_path / "set", ["normal/1.png", "tumour/2.png", f"{name}/3.png"]), tmp_path)
    assert dict(zip(patches.manifest.klass, patches.manifest.label.tolist(), strict=True)) == {
        "normal": 0, "tumour": 1, name: -1
    }  # fmt: skip
    assert any(name in note and "without a label" in note for note in patches.notes)
    told = load(tmp_path / "set", tmp_path, normal_classes=["normal", name])
    assert sorted(told.manifest.label.tolist()) == [0, 0, 1]


def test_names_that_differ_in_case_alone(tmp_path: Path) -> None:
    root = write(tmp_path / "set", ["Alpha/1.png", "alpha /2.png", "beta/3.png"])
    with refused("Alpha", "alpha ", "data.normal_classes"):
        load(root, tmp_path, normal_classes=["Alpha"])
    told = load(root, tmp_path, normal_classes=["Alpha", "alpha "]).manifest
    assert dict(zip(told.klass, told.label.tolist(), strict=True)) == {"Alpha": 0, "alpha ": 0, "beta": 1}


@pytest.mark.parametrize(
    ("names", "advised"),
    [
        (["ADI/1.png", "NORM/1.png", "TUM/1.png"], "[NORM]"),
        (["glioma/1.png", "notumor/1.png"], "[notumor]"),
        (["tumor/1.png", "tumor_free/1.png"], "[tumor_free]"),
        (["siteA/normal/1.png", "siteB/tumour/1.png"], "(normal, tumour)"),
        (["p1/normal/1.png", "p2/tumour/1.png"], "(normal, tumour)"),
        (["te/normal/1.png", "tr/normal/1.png"], "train, val and test"),
    ],
)
def test_an_advice_is_no_trap(tmp_path: Path, names: list[str], advised: str) -> None:
    with refused(advised, "data.normal_classes"):
        load(write(tmp_path / "set", names), tmp_path)


def test_class_numbers_need_no_quotes(tmp_path: Path) -> None:
    root = write(tmp_path / "set", ["0/1.png", "1/1.png"])
    assert load(root, tmp_path, normal_classes=[1]).manifest.label.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["normal_vs_tumour/normal/1.png", "normal_vs_tumour/tumour/1.png"], [0, 1]),
        (["benign_set/train/benign/1.png", "benign_set/test/mal/1.png"], [1, 0]),  # sorted: test, train
        (["normal_data/outer/normals/1.png", "normal_data/outer/tumors/1.png"], [0, 1]),
        (["non_normal/normal/1.png", "non_normal/tumour/1.png"], [0, 1]),
        (["good/normal/1.png", "good/lesion/1.png", "good/.DS_Store"], [1, 0]),
        (["normal_vs_tumour/1.png"], [-1]),
        (["normal/1.png", "normal/.DS_Store"], [0]),
        (["normal/normal/1.png"], [0]),
    ],
)
def test_a_folder_around_the_classes_is_no_class(tmp_path: Path, names: list[str], labels: list[int]) -> None:
    assert load(write(tmp_path / "set", names), tmp_path).manifest.label.tolist() == labels


def test_a_folder_that_may_be_a_class_or_around_others_is_asked_for(tmp_path: Path) -> None:
    root = write(tmp_path / "set", ["normal/p1/1.png", "normal/p2/1.png"])
    with refused(str(root), "normal", "p1, p2", "-o data.normal_classes=[normal]"):
        load(root, tmp_path)
    assert load(root, tmp_path, normal_classes=["normal"]).manifest.label.tolist() == [0, 0]
    assert load(root, tmp_path, normal_classes=["p1"]).manifest.label.tolist() == [0, 1]
    inner = write(tmp_path / "inner", ["normal/normal/1.png", "normal/tumour/1.png"])
    assert load(inner, tmp_path, normal_classes=["normal"]).manifest.label.tolist() == [0, 1]


@pytest.mark.parametrize("split", ["", "train/"])
def test_anomalies_are_not_hidden_below_a_normal_class(tmp_path: Path, split: str) -> None:
    root = write(tmp_path / "set", [f"{split}normal/1.png", f"{split}normal/tumour/2.png", f"{split}other/3.png"])
    with refused(str(root), "normal", "tumour", "-o data.normal_classes"):
        load(root, tmp_path)


def test_splits_below_classes_are_kept(tmp_path: Path) -> None:
    names = ["normal/train/1.png", "normal/val/1.png", "normal/test/1.png", "tumour/test/1.png"]
    found = load(write(tmp_path / "set", names), tmp_path).manifest
    assert dict(zip(found.image, zip(found.split, found.label.tolist(), strict=True), strict=True)) == {
        "normal/train/1.png": ("train", 0), "normal/val/1.png": ("val", 0), "normal/test/1.png": ("test", 0),
        "tumour/test/1.png": ("test", 1),
    }  # fmt: skip
    with refused("tumour/2.png", "index.csv"):
        load(write(tmp_path / "set", ["tumour/2.png"]), tmp_path)


@pytest.mark.parametrize(
    "folders",
    [
        ("train_set/normal", "validation-set/normal", "Test Data/tumour"),
        ("Training/normal", "valid/normal", "TESTING/tumour"),
        ("train/train/normal", "val/val/normal", "test/test/tumour"),
        ("normal/siteA/train", "normal/siteB/val", "tumour/siteA/test"),
        ("x/normal/a/b/train", "x/normal/a/b/val", "x/tumour/c/d/test"),
    ],
)
def test_splits_are_read_at_any_depth(tmp_path: Path, folders: tuple[str, ...]) -> None:
    names = [f"{folder}/{k}.png" for k, folder in enumerate(folders)]
    found = load(write(tmp_path / "set", names), tmp_path).manifest
    read = dict(zip(found.image, zip(found.split, found.label.tolist(), strict=True), strict=True))
    assert [read[name] for name in names] == [("train", 0), ("val", 0), ("test", 1)]


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (["normal_train/1.png", "normal_test/2.png", "tumour_test/3.png"], ("normal_test", "split")),
        (["train/normal/test/1.png", "test/tumour/2.png"], ("train/normal/test/1.png", "two splits")),
        (["normal/a/train/1.png", "tumour/a/2.png"], ("normal/a/train/1.png", "tumour/a/2.png")),
        (["normal/label/1.png", "tumour/masks/2.png"], ("2 masks",)),
        (["train/good/1.png", "test/bad/7.png", "ground_truth/bad/7.png", "ground_truth/bad/7_mask.png"], ("7_mask.png", "one image")),
    ],
)  # fmt: skip
def test_splits_and_masks_that_contradict_each_other(tmp_path: Path, names: list[str], named: tuple[str, ...]) -> None:
    with refused(*named):
        load(write(tmp_path / "set", names), tmp_path)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["normal/p1/1.png", "tumour/p2/2.png"], "2 folders below the classes, such as p1,"),
        (["normal/train_1.png", "tumour/test_2.png"], "2 file names hold train, val or test"),
        (["normal/1.png", "normal/1.jpg", "tumour/2.png"], "1 images have the name of another"),
        (["normal/1.png", "tumour/2.png", "labels.csv"], "labels.csv is not read"),
        (["train/good/1.png", "test/bad/7.png", "ground_truth/bad/9_mask.png"], "1 masks belong to no image"),
        (["normal/1.png", "tumour/2.png", "thumbnails/2.png"], "1 hidden images and thumbnails"),
    ],
)
def test_names_that_are_not_read_are_said(tmp_path: Path, names: list[str], said: str) -> None:
    notes = load(write(tmp_path / "set", names), tmp_path).notes
    assert any(said in note for note in notes), notes


def test_undecidable_classes_are_asked_for_by_name(tmp_path: Path) -> None:
    root = write(tmp_path / "set", ["alpha/1.png", "beta/1.png"])
    with refused("alpha, beta", "-o data.normal_classes=[alpha]"):
        load(root, tmp_path)
    assert load(root, tmp_path, normal_classes=["beta"]).manifest.label.tolist() == [1, 0]
    with refused("'betta'", "'beta'", "data.normal_classes"):
        load(root, tmp_path, normal_classes=["betta"])


@pytest.mark.parametrize("split", ["", "test/"])
def test_normals_are_not_hidden_below_an_anomalous_class(tmp_path: Path, split: str) -> None:
    names = [f"{split}normal/1.png", f"{split}check/benign/2.png", f"{split}check/carcinoma/3.png"]
    root = write(tmp_path / "set", names)
    with refused(str(root), "check", "benign", "-o data.normal_classes"):
        load(root, tmp_path)
    assert load(root, tmp_path, normal_classes=["normal"]).manifest.label.tolist() == [1, 1, 0]
    nested = write(
        tmp_path / "fine", [f"{split}normal/0/1.png", f"{split}tumour/case_n/2.png", f"{split}tumour/0/3.png"]
    )
    assert load(nested, tmp_path).manifest.label.tolist() == [0, 1, 1]


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


def test_a_missing_validation_split_is_made_from_train(tmp_path: Path) -> None:
    root = write(tmp_path / "set", [f"train/good/{k}.png" for k in range(40)] + ["test/good/1.png", "test/bad/2.png"])
    patches = load(root, tmp_path)
    assert Counter(patches.manifest.split) == {"train": 30, "val": 10, "test": 2}
    assert any(" 10 images of train " in note for note in patches.notes)


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


def test_an_anomalous_patch_needs_a_mask(tmp_path: Path) -> None:
    with refused("bad/1.png", "mask"):
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
    with refused("readme.png", "index.csv"):
        load(write(tmp_path / "set", ["readme.png"]), tmp_path)


@pytest.mark.parametrize("wrapper", ["", "IDC/", "a/IDC/"])
def test_idc_names_keep_their_split_folders(tmp_path: Path, wrapper: str) -> None:
    sides = {"8863": "train", "8864": "valid", "8865": "test"}
    names = [f"{wrapper}{side}/{p}/{c}/{p}_idx5_x1_y{c}_class{c}.png" for p, side in sides.items() for c in (0, 1)]
    found = load(write(tmp_path / "set", names), tmp_path).manifest
    assert {(g, s) for g, s in zip(found.group, found.split, strict=True)} == {
        ("8863", "train"), ("8864", "val"), ("8865", "test")
    }  # fmt: skip
    copy = write(tmp_path / "set", [f"{wrapper}test/8863/0/8863_idx5_x1_y0_class0.png"])
    with refused("8863_idx5_x1_y0_class0.png", "two splits", "index.csv"):
        load(copy, tmp_path)


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
    ("names", "named"),
    [
        (["a.png", "good/b.png"], ("a.png", "good", "index.csv")),
        (["train/good/a.png", "other/b.png"], ("train", "other", "index.csv")),
        (["train/good/a.png", "loose.png", "test/good/b.png"], ("loose.png",)),
        (["a.txt"], (".png .jpg",)),
    ],
)
def test_ambiguous_folders_are_refused(tmp_path: Path, names: list[str], named: tuple[str, ...]) -> None:
    with refused(str(tmp_path / "set"), *named):
        load(write(tmp_path / "set", names), tmp_path)


@pytest.mark.parametrize("name", ["missing", "text.txt", "bad.zip", "bad.npz", "bad_x.h5", "nothing.h5"])
def test_what_is_no_patch_set_is_refused(tmp_path: Path, name: str) -> None:
    if name != "missing":
        (tmp_path / name).write_bytes(b"not what the name says")
    (tmp_path / "bad_y.h5").write_bytes(b"")
    with refused(name):
        load(tmp_path / name, tmp_path)


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
    ("lines", "named"),
    [
        (["a.png,,0,train", "b.png,,2,train"], ("line 3", "label '2'")),
        (["a.png,,0,training day"], ("line 2", "split 'training day'")),
        (["a.png,,0,train,0", "b.png,,0,train,half"], ("line 3", "x 'half'")),
        (["a.png,,0,train", "a.png,,0,train"], ("line 3", "'a.png'", "line 2")),
        (["a.png,,0,train", "gone.png,,0,train"], ("line 3", "'gone.png'")),
        (["../a.png,,0,train"], ("line 2", "'../a.png'")),
        (["a.png,,0,train", "./a.png,,1,train"], ("line 3", "'./a.png'", "line 2")),
        (["a.png,,0,train", "b/../a.png,,1,test"], ("line 3", "'b/../a.png'", "line 2")),
        (["a.png,,0,train,1.5"], ("line 2", "x 1.5")),
        (["a.png,,0,train,inf"], ("line 2", "x inf")),
        (["a.png,,0,train,nan"], ("line 2", "x nan")),
        (["a.png,,0,train,1_0"], ("line 2", "x '1_0'")),
        (["a.png,,0,train,1,7"], ("line 2", "tissue 7")),
        (["a.png,,0,train,1,inf"], ("line 2", "tissue inf")),
        (["a.png,,0,train,1,nan"], ("line 2", "tissue nan")),
        (["a.png,,0,train,1,-0.1"], ("line 2", "tissue -0.1")),
        (["a.png,,0"], ("line 2",)),
        (["a.png,,0,train,more"], ("line 2",)),
        ([",,0,train"], ("line 2",)),
        ([], ()),
    ],
)
def test_index_csv_errors_name_the_line(tmp_path: Path, lines: list[str], named: tuple[str, ...]) -> None:
    cells = max((line.count(",") for line in lines if "more" not in line), default=0)
    header = "image,group,label,split" + ",x" * (cells > 3) + ",tissue" * (cells > 4)
    with refused("index.csv", *named):
        load(index(tmp_path, *lines, header=header), tmp_path)


@pytest.mark.parametrize(
    ("header", "lines", "said"),
    [
        ("image,group,label,split", ["a.png,P1,0,train", "b.png,p 01,0,test"], ("P1 and p 01",)),
        ("image,group,label,split", ["a.png,1,0,train", "b.png,1.0,0,test"], ("1 and 1.0",)),
        ("image,group,label,split,slide", ["a.png,p,0,train,s7", "b.png,q,0,test,s7"], ("1 slides", "s7")),
        ("image,group,label,split,class", ["a.png,p,0,,tumour", "b.png,q,1,,normal"], ("1 images of class tumour", "0 (normal)")),
        ("image,group,label,split,class", ["a.png,p,0,,tumour", "b.png,q,1,,normal"], ("1 images of class normal", "1 (anomalous)")),
        ("image,group,label,split,patient", ["a.png,,0,train,p1"], ("not read", "patient")),
    ],
)  # fmt: skip
def test_doubts_about_an_index_csv_are_said(
    tmp_path: Path, header: str, lines: list[str], said: tuple[str, ...]
) -> None:
    notes = load(index(tmp_path, *lines, header=header), tmp_path).notes
    assert any(all(word in note for word in said) for note in notes), notes


def test_a_sound_index_csv_raises_no_doubt(tmp_path: Path) -> None:
    header = "image,group,label,split,class,slide,x,y,side,level,mpp,tissue,tumour,stain,mask"
    lines = ["a.png,p1,0,train,normal,s1,1,2,8,0,0.5,0.9,0,,", "b.png,p2,1,test,tumour,s2,1,2,8,0,0.5,0.9,1,,c.png"]
    notes = load(index(tmp_path, *lines, header=header), tmp_path).notes
    assert not [note for note in notes if "groups are" in note or "not read" in note or "have the label" in note]


@pytest.mark.parametrize("group", ["nan", "NA", "None", "unknown"])
@pytest.mark.parametrize("column", ["group", "slide"])
def test_a_group_that_is_no_name(tmp_path: Path, group: str, column: str) -> None:
    """As data frames write what is missing: all these images would count as one patient."""
    cells = f"{group}," if column == "group" else f",{group}"
    with refused("line 2", repr(group), column):
        load(index(tmp_path, f"a.png,{cells},0,train", header="image,group,slide,label,split"), tmp_path)


def test_tables_of_another_name_and_masks_that_are_images(tmp_path: Path) -> None:
    root = index(tmp_path, "a.png,,0,train,b.png", "b.png,,1,test,", header="image,group,label,split,mask")
    with refused("b.png", "mask"):
        load(root, tmp_path)
    (root / "index.csv").rename(root / "Index.CSV")
    with refused("Index.CSV", "index.csv"):
        load(root, tmp_path)


def test_index_csv_with_a_wrong_header(tmp_path: Path) -> None:
    with refused("index.csv", "'image'", "'images'"):
        load(index(tmp_path, "a.png,,0,train", header="images,group,label,split"), tmp_path)


def test_a_group_on_two_sides_is_an_error(tmp_path: Path) -> None:
    root = index(tmp_path, "a.png,p7,0,train", "b.png,p7,1,test", "c.png,p8,0,val")
    with refused("p7 in test and train"):
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
