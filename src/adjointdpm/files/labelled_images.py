"""Labelled images as files: a folder for each label, or one folder with a csv.

folder/a cat/1.png                       the label is the name of the folder
folder/1.png, labels.csv: file_name,label    the label stands in the csv, whose paths begin at the folder
"""

import csv
from pathlib import Path

import torch
from torch import Tensor

from .._types import InputError
from .images import image_file

__all__ = ["labelled_files", "read_images"]

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".jp2")


def labelled_files(folder: Path, table: Path | None = None) -> list[tuple[Path, str]]:
    """Return the image files of a folder with their labels, in the order of their paths.

    Args:
        folder: has a folder for each label, or a labels.csv.
        table: a csv with the columns file_name and label, whose paths begin at the folder; `folder/labels.csv` if it is
            there, else the labels are the names of the folders.

    Raises:
        InputError: no such folder, an image beside the folders of labels, no image at all, or a csv without these
            columns, with a path twice or with one that is not there.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give one with a folder of images for each label")
    if table is None and (folder / "labels.csv").is_file():
        table = folder / "labels.csv"
    if table is not None:
        return _of_table(folder, table)
    images = [each for each in sorted(folder.rglob("*")) if each.suffix.lower() in _ENDINGS]
    images = [each for each in images if not any(p.startswith(".") for p in each.relative_to(folder).parts)]
    if not images:
        raise InputError(
            f"{folder} holds no image; put images into a folder for each label, such as {folder}/cat/1.png, or beside "
            "a labels.csv with the columns file_name and label"
        )
    beside = [each for each in images if each.parent == folder]
    if beside:
        raise InputError(
            f"{beside[0]} lies in no folder that is named after a label, and there is no {folder / 'labels.csv'}"
        )
    return [(each, each.relative_to(folder).parts[0]) for each in images]


def _of_table(folder: Path, table: Path) -> list[tuple[Path, str]]:
    """Return what a csv says.

    Raises:
        InputError: it cannot be read, or see `labelled_files`.
    """
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"cannot read the labels {table}: {error}") from error
    found: dict[Path, str] = {}
    for line, row in enumerate(rows, 2):
        name, label = row.get("file_name"), row.get("label")
        if not name or not label:
            raise InputError(
                f"{table}, line {line}: each image needs a file_name and a label, but the columns are "
                f"{', '.join(str(each) for each in row)}"
            )
        path = folder / name
        if not path.is_file():
            raise InputError(f"{table}, line {line}: there is no file {path}")
        if path in found:
            raise InputError(f"{table}, line {line}: {name} was named before")
        found[path] = label
    if not found:
        raise InputError(f"{table} names no image")
    return list(found.items())


def read_images(paths: list[Path], size: tuple[int, int] | None, resize: bool = False) -> Tensor:
    """Return images of 8 bits and one size, (batch, 3, height, width) in [0, 1].

    Args:
        paths: of the files.
        size: height and width that are needed; those of the first image if None.
        resize: resize what has another size (bilinear, with antialiasing) instead of refusing it.

    Raises:
        InputError: a file is no image, or has another size.
    """
    images: list[Tensor] = []
    for path in paths:
        image = image_file(path)
        size = (image.shape[1], image.shape[2]) if size is None else size
        if tuple(image.shape[1:]) != tuple(size):
            if not resize:
                raise InputError(
                    f"{path} is {image.shape[2]} x {image.shape[1]} pixels, but {size[1]} x {size[0]} are needed; "
                    "resize the images, or have them resized by --resize: then the resized images are what is audited"
                )
            image = torch.nn.functional.interpolate(
                image[None], size, mode="bilinear", antialias=True, align_corners=False
            )[0]
        images.append((255 * image.clamp(0, 1)).round() / 255)
    return torch.stack(images)
