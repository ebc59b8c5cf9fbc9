"""Labelled images are read from folders of labels or from a csv; what is no such thing is refused by its name."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm.files.images import png
from adjointdpm.files.labelled_images import labelled_files, read_images


def image(level, size=(4, 6)):
    return png(torch.full((3, *size), level, dtype=torch.uint8))


@pytest.fixture
def folder(tmp_path):
    for name, level in (("a cat/2.png", 20), ("a cat/1.png", 10), ("dog/deeper/3.png", 30)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(image(level))
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    (tmp_path / "dog" / ".hidden.png").write_bytes(image(0))
    return tmp_path


def test_labels_are_the_names_of_folders(folder):
    found = labelled_files(folder)
    assert [(str(path.relative_to(folder)), label) for path, label in found] == [
        ("a cat/1.png", "a cat"),
        ("a cat/2.png", "a cat"),
        ("dog/deeper/3.png", "dog"),
    ]
    images = read_images([path for path, _ in found], (4, 6))
    assert (255 * images[:, 0, 0, 0]).round().tolist() == [10, 20, 30]


def test_labels_stand_in_a_csv(folder):
    (folder / "labels.csv").write_text("file_name,label\na cat/2.png,wolf\ndog/deeper/3.png,fox\n")
    assert [label for _, label in labelled_files(folder)] == ["wolf", "fox"]
    other = folder / "other.csv"
    other.write_text("label,file_name\nowl,a cat/1.png\n")
    assert labelled_files(folder, other) == [(folder / "a cat/1.png", "owl")]
    for text, message in (
        ("file_name,label\nno.png,a\n", "line 2: there is no file"),
        ("file_name,label\na cat/1.png,a\na cat/1.png,b\n", "line 3: a cat/1.png was named before"),
        ("name,label\na cat/1.png,a\n", "the columns are name, label"),
        ("file_name,label\n", "names no image"),
    ):
        other.write_text(text)
        with pytest.raises(adp.InputError, match=message):
            labelled_files(folder, other)
    with pytest.raises(adp.InputError, match="cannot read the labels"):
        labelled_files(folder, folder / "none.csv")


def test_another_size_is_refused_and_resized_only_if_asked(folder):
    (folder / "a cat" / "2.png").write_bytes(image(20, (8, 12)))
    paths = [path for path, _ in labelled_files(folder)]
    with pytest.raises(adp.InputError, match=r"2\.png is 12 x 8 pixels, but 6 x 4 are needed"):
        read_images(paths, None)
    images = read_images(paths, None, resize=True)
    assert images.shape == (3, 3, 4, 6)
    assert torch.equal(images, (255 * images).round() / 255)
    assert (255 * images[1]).round().unique().tolist() == [20]


def test_what_is_no_labelled_folder_is_refused(folder, tmp_path):
    with pytest.raises(adp.InputError, match="is no folder"):
        labelled_files(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(adp.InputError, match="holds no image"):
        labelled_files(tmp_path / "empty")
    (folder / "5.png").write_bytes(image(5))
    with pytest.raises(adp.InputError, match=r"5\.png lies in no folder"):
        labelled_files(folder)
