"""UPMC Food-101: a picture found by searching for a dish, and the title of its web page; which of 101 dishes it is.

Reads `train_titles.csv` and `test_titles.csv` (no header) and the pictures they name.  The release has no validation
split: MAP's `split.json` is used if it is there, else an own one is taken out of train.  Test is never valid.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from harness.dataset import grouped_split, join_groups
from harness.datasets._released import (
    Description,
    Listing,
    ReleasedConfig,
    Sample,
    archives_in,
    first_of,
    inside,
    read_json,
)
from harness.errors import DataError
from harness.plugin import check_choice
from harness.types import Split, TaskSpec

_CLASSES = """
frozen_yogurt tacos gnocchi ramen sushi spaghetti_carbonara foie_gras club_sandwich chicken_curry caprese_salad
guacamole fish_and_chips seaweed_salad samosa shrimp_and_grits prime_rib cheese_plate grilled_cheese_sandwich
omelette macarons pancakes paella crab_cakes onion_rings poutine panna_cotta hamburger eggs_benedict pizza cup_cakes
red_velvet_cake huevos_rancheros french_toast pad_thai beef_tartare beet_salad garlic_bread escargots cheesecake
tuna_tartare french_fries pulled_pork_sandwich ravioli clam_chowder baby_back_ribs pork_chop chicken_quesadilla
grilled_salmon dumplings fried_rice macaroni_and_cheese hot_and_sour_soup tiramisu lobster_roll_sandwich
filet_mignon lobster_bisque risotto takoyaki waffles miso_soup scallops hummus french_onion_soup
spaghetti_bolognese gyoza sashimi caesar_salad donuts pho creme_brulee edamame apple_pie carrot_cake croque_madame
chocolate_cake mussels chocolate_mousse deviled_eggs ice_cream chicken_wings steak churros beignets
breakfast_burrito spring_rolls lasagna cannoli nachos bruschetta hot_dog greek_salad beef_carpaccio falafel
strawberry_shortcake bread_pudding ceviche peking_duck bibimbap oysters fried_calamari baklava
"""
#: Classes in the order of `class_idx.json`, which the released code of MAP, RAGPT and REDEEM uses.
CLASSES = tuple(_CLASSES.split())
#: File -> split and number of rows.
RELEASE: dict[str, tuple[Split, int]] = {"train": ("train", 67_972), "test": ("test", 22_716)}
#: Rows of train that MAP's `split.json` puts into valid.
MAP_VALID = 6_845

_NUMBERS = {name: number for number, name in enumerate(CLASSES)}
_TEXTS = ("", "texts/", "meta_data/")
_OWN_SHARE = MAP_VALID / RELEASE["train"][1]


@dataclass
class Food101Config(ReleasedConfig):
    """Picture and page title of a dish, 101 classes.

    Attributes:
        valid: `auto`: MAP's `split.json` if it is in the folder, else `own`; `map`: it must be there; `own`: a tenth of
            train, by class, same titles together, in an order of hashes.
        first_row: `keep`, or `drop` the first row of each list, which the released code of RAGPT and REDEEM takes
            for a header.
    """

    valid: str = "auto"
    first_row: str = "keep"

    name: ClassVar[str] = "food101"
    summary: ClassVar[str] = "picture + web page title of a dish, 101 classes (UPMC Food-101; you supply the files)"
    citation: ClassVar[str] = (
        "Wang, Kumar, Thome, Cord, Precioso: Recipe Recognition with Large Multimodal Food Dataset, ICME Workshop 2015"
    )
    license: ClassVar[str] = "no licence stated; pictures and titles belong to the pages they come from; research use"
    obtain: ClassVar[str] = (
        "download https://www.kaggle.com/datasets/gianmarco96/upmcfood101 (images/, texts/), put MAP's split.json "
        "beside them, then dataset.folder=DIR"
    )
    card: ClassVar[str] = "cards/food101.md"

    def validate(self) -> None:
        """Checks choices; raises `UsageError`."""
        super().validate()
        check_choice("dataset", "valid", self.valid, ("auto", "map", "own"))
        check_choice("dataset", "first_row", self.first_row, ("keep", "drop"))

    def title(self) -> str:
        """Without the first rows it is another data set."""
        return self.name if self.first_row == "keep" else f"{self.name}_first_row_dropped"

    def task(self) -> TaskSpec:
        """101 classes."""
        return TaskSpec("multiclass", len(CLASSES), CLASSES, "accuracy")

    def find(self, folder: Path) -> Path:
        """The folder with both lists of titles."""
        for place in (folder, folder / "UPMC_Food101", folder / "food101"):
            if all(any((place / inner / f"{name}_titles.csv").is_file() for inner in _TEXTS) for name in RELEASE):
                return place
        hint = archives_in(folder)
        if (folder / "meta" / "classes.txt").is_file():
            hint = "; this is the Food-101 of ETH Zurich, which has no texts"
        raise DataError(f"no train_titles.csv and test_titles.csv of UPMC Food-101 in {folder}{hint}; {self.obtain}")

    def describe(self, folder: Path, files: Listing) -> Description:
        """Reads both lists and the validation split."""
        found = Description()
        index = next((path for inner in _TEXTS if (path := f"{inner}class_idx.json") in files), "")
        if index:
            order = read_json(folder, index, found)
            if order is not None and order != _NUMBERS:
                found.remarks["class_idx.json has another order of classes; labels are in the order of MAP's"] = [index]
        train = self._rows(folder, "train", files, found)
        test = self._rows(folder, "test", files, found)
        moved = self._valid_rows(folder, files, train, found)
        train = [replace(sample, split="valid") if row in moved else sample for row, sample in enumerate(train)]
        first = 1 if self.first_row == "drop" else 0
        found.samples = train[first:] + test[first:]
        return found

    def _rows(self, folder: Path, name: str, files: Listing, found: Description) -> list[Sample]:
        """Samples of one list."""
        split, released = RELEASE[name]
        file = first_of(files, [f"{inner}{name}_titles.csv" for inner in _TEXTS])
        samples: list[Sample] = []
        rows = 0
        try:
            with (folder / file).open(encoding="utf-8-sig", newline="") as opened:
                for row in csv.reader(opened):
                    if row:
                        rows += 1
                        self._add(found, f"{file}, row {rows}", row, name, split, files, samples)
        except (OSError, ValueError, csv.Error) as error:
            found.problem(file, f"cannot be read after row {rows} ({error})")
        found.counts[f"{name}_titles.csv"] = (rows, released)
        return samples

    def _add(
        self,
        found: Description,
        where: str,
        row: list[str],
        name: str,
        split: Split,
        files: Listing,
        samples: list[Sample],
    ) -> None:
        """Adds the dish of one row, or what is wrong with the row."""
        if len(row) != 3:
            found.problem(where, f"has {len(row)} columns, not 3 (picture, title, class)")
            return
        picture, title, dish = row
        if dish not in _NUMBERS:
            what = f"class {dish!r} is none of the {len(CLASSES)}" if dish else "has no label"
            found.problem(where, what + (" (the lists have no header)" if where.endswith("row 1") else ""))
        elif not inside(picture) or "/" in picture:
            found.problem(where, f"{picture!r} is not the name of a picture")
        else:
            path = first_of(
                files,
                [
                    f"images/{name}/{dish}/{picture}",
                    f"images/{dish}/{picture}",
                    f"images/{picture}",
                    f"image/{picture}",
                ],
            )
            samples.append(Sample(Path(picture).stem, split, path, (_NUMBERS[dish],), (title,)))

    def _valid_rows(self, folder: Path, files: Listing, train: Sequence[Sample], found: Description) -> set[int]:
        """Rows of train that are validation samples."""
        file = first_of(files, ["split.json", "meta_data/split.json"])
        if self.valid == "own" or (self.valid == "auto" and file not in files):
            labels = np.array([sample.labels[0] for sample in train], dtype=np.int64)
            groups = join_groups([[sample.texts[0].strip().lower() or sample.id] for sample in train])
            fractions = (1 - _OWN_SHARE, _OWN_SHARE, 0.0)
            found.remarks["validation samples are an own split of train, not MAP's"] = []
            return set(grouped_split(groups, labels, "food101-valid-1", fractions)["valid"].tolist())
        if file not in files:
            found.problem(
                file, "is missing; it is in MAP's repository (datasets/Food101/split.json), or choose valid=own"
            )
            return set()
        listed = read_json(folder, file, found)
        if listed is None:
            return set()
        parts = {part: listed.get(part) if isinstance(listed, dict) else None for part in ("train", "val", "test")}
        for part, names in parts.items():
            if not isinstance(names, list):
                found.problem(file, f"has no list {part!r}")
                return set()
        home = {str(name): part for part, names in parts.items() for name in names or ()}
        moved = set()
        for row, sample in enumerate(train):
            listed_in = home.get(Path(sample.picture).name)
            if listed_in == "val":
                moved.add(row)
            elif listed_in != "train":
                place = "in none of its lists" if listed_in is None else "in its list 'test'"
                found.problem(file, f"{Path(sample.picture).name} of train_titles.csv is {place}")
        found.counts["'val' of split.json"] = (len(moved), MAP_VALID)
        return moved
