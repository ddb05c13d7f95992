"""The papers' datasets as TFDS prepares them: miniature copies with the real feature specs."""

import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import reference
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from damages import DAMAGES, damage
from makers import IMAGENET, coop_data

from coop_jax.classes import spelled
from coop_jax.data import catalog, class_names, listing, overlay
from coop_jax.data.official import OFFICIAL
from coop_jax.errors import InputError, MachineError

SPLITS = listing.SPLITS
CATALOGUED = {name: row.tfds for name, row in OFFICIAL.items() if row.tfds}
WITH_SPLIT = [name for name in CATALOGUED if OFFICIAL[name].split_file]
WITH_WNIDS = [name for name in CATALOGUED if not OFFICIAL[name].split_file]
FILLERS = {
    tfds.features.Image: b"a mask",
    tfds.features.ClassLabel: 0,
    tfds.features.BBoxFeature: tfds.features.BBox(0.0, 0.0, 1.0, 1.0),
}


def real_builder(row, data_dir):
    return tfds.builder(f"{row.name}:{row.version}", data_dir=data_dir)


def write_copy(row, data_dir, records):
    """A copy as TFDS prepares it, of records (TFDS split, label name, file, image)."""
    features = real_builder(row, data_dir).info.features
    folder = data_dir / row.folder
    folder.mkdir(parents=True)
    name = row.name.split("/")[0]
    infos = []
    for split in dict.fromkeys(split for split, *_ in records):
        chosen = [record[1:] for record in records if record[0] == split]
        shards = [chosen[0::2], chosen[1::2]] if len(chosen) > 1 else [chosen]
        for number, shard in enumerate(shards):
            file = f"{name}-{split}.array_record-{number:05d}-of-{len(shards):05d}"
            writer = ArrayRecordWriter(str(folder / file), "group_size:1")
            for label, text, image in shard:
                example = {key: FILLERS.get(type(feature)) for key, feature in features.items()}
                example |= {"label": label, row.file_feature: text, "image": image}
                writer.write(features.serialize_example(example))
            writer.close()
        lengths = [len(shard) for shard in shards]
        infos.append(tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=1))
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=infos,
        version=row.version,
        check_data=False,
    )
    return folder


def label_names(name, data_dir):
    """TFDS's name of every one of CoOp's classes."""
    row = CATALOGUED[name]
    names = real_builder(row, data_dir).info.features["label"].names
    return {row.rename(label): label for label in names}


def record_of(name, path, class_name, tfds_names):
    """What TFDS makes of an image of CoOp's: split, label name, file, image."""
    folder, _, file = path.rpartition("/")
    label, image = tfds_names[class_name], f"image of {path}".encode()
    splits = [split for split in dict.fromkeys(CATALOGUED[name].splits) if split]
    split = splits[sum(path.encode()) % len(splits)]
    return {
        "caltech101": (split, folder.lower(), file, image),
        "stanford_cars": (folder.removeprefix("cars_"), label, file.removesuffix(".jpg"), image),
        "food101": (split, label, path.removesuffix(".jpg"), image),
        "sun397": (split, label, f"/{path}", image),
        "eurosat": (split, label, file, image),
    }.get(name, (split, label, path, image))


def few_of_the_split(name):
    """The official split with one training image per class and a few others."""
    if name in ("food101", "sun397"):
        names = json.loads(reference.path(f"coop_splits/classnames_{name}.json").read_text())
        folders = [
            f"x/{'/'.join(reversed(n.split(' ')))}" if name == "sun397" else n for n in names
        ]
        rows = [[f"{folders[k]}/{k}.jpg", k, n] for k, n in enumerate(names)]
        more = [[f"{folders[k]}/again_{k}.jpg", k, n] for k, n in enumerate(names[:20])]
        return {"train": rows, "val": more[:10], "test": more[10:]}
    split_file = reference.path(f"coop_splits/{OFFICIAL[name].split_file.name}")
    official = json.loads(split_file.read_text())
    first = {}
    for row in official["train"]:
        first.setdefault(row[1], row)
    return {
        "train": list(first.values()),
        "val": official["val"][:5] + official["val"][-5:],
        "test": official["test"][:5] + official["test"][-5:],
    }


@pytest.fixture
def write_mini(tmp_path):
    """Writes a dataset's split file and TFDS copy, less the first `lacking` test images."""

    def write(name, lacking=0):
        split = few_of_the_split(name)
        row = OFFICIAL[name]
        (tmp_path / row.folder).mkdir(exist_ok=True)
        (tmp_path / row.folder / row.split_file.name).write_text(json.dumps(split))
        names = label_names(name, tmp_path)
        records = [
            record_of(name, path, class_name, names)
            for rows in (split["train"], split["val"], split["test"][lacking:])
            for path, _, class_name in rows
        ]
        if name == "caltech101":
            records += [
                ("test", "faces_easy", "image_0001.jpg", b"easy"),
                ("test", "background_google", "image_0001.jpg", b"background"),
            ]
        write_copy(row.tfds, tmp_path, records[::-1])
        return split

    return write


@pytest.mark.parametrize("name", CATALOGUED)
def test_the_table_is_that_of_tfds(name, tmp_path):
    row = CATALOGUED[name]
    builder = real_builder(row, tmp_path)
    assert builder.info.full_name == row.folder
    assert builder.data_path == tmp_path / row.folder
    assert isinstance(builder.info.features[row.file_feature], tfds.features.Text)


@pytest.mark.parametrize("name", CATALOGUED)
def test_renamed_classes_are_coop_s(name, tmp_path):
    row = CATALOGUED[name]
    labels = real_builder(row, tmp_path).info.features["label"].names
    if name in WITH_WNIDS:
        assert labels == list(class_names.imagenet())
        return
    renamed = [row.rename(label) for label in labels]
    kept = spelled(new for new in renamed if new is not None)
    assert sorted(kept) == sorted(class_names.shipped(name))
    dropped = {label for label, new in zip(labels, renamed, strict=True) if new is None}
    assert dropped == ({"background_google", "faces_easy"} if name == "caltech101" else set())
    assert (kept == class_names.shipped(name)) == (name not in ("caltech101", "food101"))


def test_class_names_are_those_of_the_official_files():
    splits = reference.path("coop_splits")
    for name, row in OFFICIAL.items():
        assert len(class_names.shipped(name)) == (1000 if name in WITH_WNIDS else row.n_classes)
        path = row.split_file and splits / row.split_file.name
        if path and path.is_file():
            assert class_names.shipped(name) == listing.read_split_file(path, path).class_names
    lines = (splits / "imagenet_classnames.txt").read_text().splitlines()
    assert [f"{wnid} {name}" for wnid, name in class_names.imagenet().items()] == lines
    for name in ("food101", "sun397", "fgvc_aircraft"):
        names = json.loads(reference.path(f"coop_splits/classnames_{name}.json").read_text())
        assert class_names.shipped(name) == spelled(names)


@pytest.mark.parametrize("name", WITH_SPLIT)
def test_official_paths_find_their_records(write_mini, name, tmp_path):
    split = write_mini(name)
    dataset = catalog.load(name, tmp_path)
    assert dataset.classes.names == class_names.shipped(name)
    assert (dataset.origin, dataset.split_name()) == ("", "test")
    assert dataset.place == f"TFDS copy {tmp_path / CATALOGUED[name].folder}"
    for part in SPLITS:
        examples = getattr(dataset, part)
        assert examples.file_names.tolist() == [row[0] for row in split[part]]
        assert examples.labels.tolist() == [row[1] for row in split[part]]
        assert examples.indices.tolist() == list(range(len(split[part])))
        for i, (path, *_) in enumerate(split[part]):
            assert examples.source[i]["image"] == f"image of {path}".encode()


def test_records_survive_pickling_and_threads(write_mini, tmp_path):
    split = write_mini("oxford_pets")
    source = catalog.load("oxford_pets", tmp_path).train.source
    copy = pickle.loads(pickle.dumps(source))
    places = list(range(len(copy))) * 20
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(lambda place: copy[place]["image"], places))
    assert images == [f"image of {split['train'][place][0]}".encode() for place in places]


def test_an_absent_image_is_refused(write_mini, tmp_path):
    split = write_mini("dtd", lacking=1)
    with pytest.raises(InputError, match=rf"none for 1 of them \({split['test'][0][0]}\); restore"):
        catalog.load("dtd", tmp_path)


def test_sun397_may_lack_two_images(write_mini, tmp_path, caplog):
    split = write_mini("sun397", lacking=2)
    dataset = catalog.load("sun397", tmp_path)
    assert dataset.test.file_names.tolist() == [row[0] for row in split["test"][2:]]
    assert dataset.test.source[0]["image"] == f"image of {split['test'][2][0]}".encode()
    lacking = ", ".join(row[0] for row in split["test"][:2])
    assert f"TFDS left out 2 images of split_zhou_SUN397.json, and so do we: {lacking}" in (
        caplog.messages
    )


def test_sun397_may_not_lack_three_images(write_mini, tmp_path):
    write_mini("sun397", lacking=3)
    with pytest.raises(InputError, match="none for 3 of them"):
        catalog.load("sun397", tmp_path)


@pytest.mark.parametrize("name", WITH_SPLIT)
def test_without_the_split_file_the_split_is_tfds_s(write_mini, name, tmp_path, caplog):
    split = write_mini(name)
    split_file = tmp_path / OFFICIAL[name].folder / OFFICIAL[name].split_file.name
    split_file.unlink()
    dataset = catalog.load(name, tmp_path)
    assert sum(f"no {split_file}, so the split is TFDS's" in line for line in caplog.messages) == 1
    cut = name == "eurosat"
    assert dataset.split_name() == f"test of TFDS{', cut anew' if cut else ''}"
    assert dataset.classes.names == class_names.shipped(name)
    wanted = {path.lower(): label for rows in split.values() for path, label, _ in rows}
    found = {}
    for part in SPLITS:
        examples = getattr(dataset, part)
        pairs = list(zip(examples.labels.tolist(), examples.file_names.tolist(), strict=True))
        assert cut or pairs == sorted(pairs)
        for place, (label, path) in enumerate(pairs):
            found[path.lower()] = label
            image = examples.source[place]["image"].decode()
            assert image.lower() == f"image of {path}".lower()
    assert found == wanted
    assert bool(len(dataset.val)) == (cut or bool(CATALOGUED[name].splits[1]))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """ImageNet and its variants in CoOp's layout, a few images of four classes."""
    return coop_data(tmp_path_factory.mktemp("folders"), WITH_WNIDS)


def wnid_records(name, dataset):
    """The images of a dataset in CoOp's layout as TFDS's records."""
    classes = sorted(list(IMAGENET)[:4])
    records = []
    for part, tfds_split in zip(SPLITS, CATALOGUED[name].splits, strict=True):
        if not tfds_split or (name, part) == ("imagenet", "val"):
            continue
        examples = getattr(dataset, part)
        for place, path in enumerate(examples.file_names.tolist()):
            folder, file = path.split("/")[-2:]
            wnid = classes[int(folder)] if name == "imagenetv2" else folder
            text = file if name in ("imagenet", "imagenet_a") else f"{folder}/{file}"
            records.append((tfds_split, wnid, text, examples.source[place]["image"]))
    np.random.default_rng(0).shuffle(records)
    return [(*record[:3], bytes(record[3])) for record in records]


@pytest.mark.parametrize("name", WITH_WNIDS)
def test_imagenet_s_are_as_in_coop_s_folders(folders, name, tmp_path):
    laid_out = catalog.load(name, folders)
    write_copy(CATALOGUED[name], tmp_path, wnid_records(name, laid_out))
    dataset = catalog.load(name, tmp_path)
    assert dataset.classes.repeated == OFFICIAL[name].repeated
    only_present = name not in ("imagenet", "imagenetv2")
    assert len(dataset.classes.names) == (len(laid_out.classes.names) if only_present else 1000)
    for part in SPLITS:
        ours, theirs = getattr(dataset, part), getattr(laid_out, part)
        assert len(ours) == len(theirs)
        for place in range(len(ours)):
            assert ours.source[place]["image"] == theirs.source[place]["image"]
            name_of = dataset.classes.names[ours.labels[place]]
            assert name_of == laid_out.classes.names[theirs.labels[place]]
        if only_present:
            np.testing.assert_array_equal(ours.labels, theirs.labels)
        if name != "imagenetv2":
            np.testing.assert_array_equal(ours.file_names, theirs.file_names)


def test_imagenet_s_class_names_are_those_of_the_folder_if_they_are_there(folders, tmp_path):
    write_copy(
        CATALOGUED["imagenet_a"],
        tmp_path,
        wnid_records("imagenet_a", catalog.load("imagenet_a", folders)),
    )
    names = class_names.imagenet()
    chosen = catalog.load("imagenet_a", tmp_path).classes.names[0]
    lines = [f"{wnid} {'our word' if n == chosen else n}" for wnid, n in names.items()]
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "imagenet" / "classnames.txt").write_text("\n".join(lines))
    assert catalog.load("imagenet_a", tmp_path).classes.names[0] == "our word"
    (tmp_path / "imagenet" / "classnames.txt").write_text("\n".join(lines[1:]))
    with pytest.raises(InputError, match="got also n01440764; restore classnames"):
        catalog.load("imagenet_a", tmp_path)


def test_labels_are_read_once(write_mini, tmp_path, monkeypatch):
    write_mini("dtd")
    first = catalog.load("dtd", tmp_path)
    kept = sorted(path.name for path in (tmp_path / "dtd" / "3.0.1").glob("index*"))
    assert kept == ["index-test.npz", "index-train.npz", "index-validation.npz"]
    monkeypatch.setattr("coop_jax.data.records.rows", None)
    again = catalog.load("dtd", tmp_path)
    np.testing.assert_array_equal(first.train.file_names, again.train.file_names)


def test_a_folder_that_cannot_be_written_is_read_all_the_same(write_mini, tmp_path, monkeypatch):
    write_mini("dtd")

    def refuse(*arguments, **others):
        raise PermissionError

    monkeypatch.setattr("coop_jax.writing.write_whole", refuse)
    assert len(catalog.load("dtd", tmp_path).train) == 47


def test_a_copy_of_another_format_is_refused(write_mini, tmp_path):
    write_mini("dtd")
    info = tmp_path / "dtd" / "3.0.1" / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(InputError, match=r"got tfrecord; .*`tfds convert_format --dataset_version"):
        catalog.load("dtd", tmp_path)
    info.write_text("{")
    with pytest.raises(InputError, match="expected a dataset that TFDS has prepared in"):
        catalog.load("dtd", tmp_path)


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_copy_ends_in_one_line(write_mini, kind, tmp_path):
    write_mini("dtd")

    def seen(data_dir):
        dataset = catalog.load("dtd", data_dir)
        splits = [getattr(dataset, split) for split in SPLITS]
        images = [[split.encoded(index) for index in range(len(split))] for split in splits]
        return dataset.classes, [split.file_names.tolist() for split in splits], images

    expected = seen(tmp_path)
    whole, refused = tmp_path / "dtd", 0
    names = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file()]
    for number, name in enumerate(names):
        copied = tmp_path / f"{number}"
        shutil.copytree(whole, copied / "dtd")
        damage(copied / "dtd" / name, kind)
        try:
            is_split = name.name.startswith("split_zhou")  # the user's own, without a digest
            assert seen(copied) == expected or is_split, name
        except (InputError, MachineError) as error:
            refused += 1
            assert "\n" not in str(error) and "; " in str(error)
    assert refused >= 5 or kind in ("short", "flipped")


def test_a_copy_without_a_split_is_refused(tmp_path):
    write_copy(CATALOGUED["dtd"], tmp_path, [("train", "banded", "banded/1.jpg", b"image")])
    with pytest.raises(InputError, match="got none of test, validation; remove the folder"):
        catalog.load("dtd", tmp_path)


def test_coop_s_folder_comes_first(write_mini, tmp_path):
    write_mini("dtd")
    coop_data(tmp_path, ["dtd"])
    assert catalog.load("dtd", tmp_path).place == f"folder {tmp_path / 'dtd' / 'images'}"


@pytest.mark.parametrize("name", OFFICIAL)
def test_what_is_nowhere_says_where_it_could_be(name, tmp_path):
    row = OFFICIAL[name]
    with pytest.raises(InputError) as error:
        catalog.load(name, tmp_path)
    assert str(tmp_path / row.folder / row.images) in str(error.value)
    if row.tfds is None:
        assert "TFDS has no images of it" in str(error.value)
        assert isinstance(overlay.absent(name, row, tmp_path), InputError)
    else:
        assert str(tmp_path / row.tfds.folder) in str(error.value)
        assert f"coop_jax prepare {name} --data-dir" in str(error.value)
