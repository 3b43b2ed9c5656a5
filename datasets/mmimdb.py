"""MM-IMDb: poster and plot of a film; its genres, 23 labels of which several may apply.

Reads the raw release: `split.json`, and `<id>.json` and `<id>.jpeg` per film.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from harness.datasets._released import (
    Description,
    Listing,
    ReleasedConfig,
    Sample,
    archives_in,
    as_text,
    first_of,
    read_json,
)
from harness.errors import DataError
from harness.plugin import check_choice
from harness.progress import track
from harness.types import Split, TaskSpec

#: Order of the labels in the released code of MAP, RAGPT and REDEEM: by frequency.
GENRES = (
    "Drama",
    "Comedy",
    "Romance",
    "Thriller",
    "Crime",
    "Action",
    "Adventure",
    "Horror",
    "Documentary",
    "Mystery",
    "Sci-Fi",
    "Fantasy",
    "Family",
    "Biography",
    "War",
    "History",
    "Music",
    "Animation",
    "Musical",
    "Western",
    "Sport",
    "Short",
    "Film-Noir",
)
#: Genres of the raw files that are no labels.
DROPPED = ("News", "Adult", "Talk-Show", "Reality-TV")
#: Name in `split.json` -> split and number of films.
RELEASE: dict[str, tuple[Split, int]] = {"train": ("train", 15_552), "dev": ("valid", 2_608), "test": ("test", 7_799)}

# The release, and how the released code of MAP and of REDEEM wants it rearranged.
_DESCRIPTIONS = ("dataset", "labels", "meta_data")
_PICTURES = ("dataset", "images", "image")
_SPLITS = ("split.json", "meta_data/split.json")


@dataclass
class MmimdbConfig(ReleasedConfig):
    """Poster and plot, 23 genres (multi-label).

    Attributes:
        text_field: `outline_first`: the plot outline if there is one, else the first plot; `first_plot`;
            `all_plots`: all plots joined.
    """

    text_field: str = "outline_first"

    name: ClassVar[str] = "mmimdb"
    summary: ClassVar[str] = "film poster + plot, 23 genres, multi-label (MM-IMDb; you supply the files)"
    citation: ClassVar[str] = (
        "Arevalo, Solorio, Montes-y-Gomez, Gonzalez: Gated Multimodal Units for Information Fusion, ICLR Workshop 2017"
    )
    license: ClassVar[str] = "no licence stated; plots are IMDb's, posters their studios'; research use"
    obtain: ClassVar[str] = (
        "download https://archive.org/download/mmimdb/mmimdb.tar.gz, unpack it, then dataset.folder=DIR"
    )
    card: ClassVar[str] = "cards/mmimdb.md"

    def validate(self) -> None:
        """Checks choices; raises `UsageError`."""
        super().validate()
        check_choice("dataset", "text_field", self.text_field, ("outline_first", "first_plot", "all_plots"))

    def title(self) -> str:
        """Texts chosen otherwise are another data set."""
        return self.name if self.text_field == "outline_first" else f"{self.name}_{self.text_field}"

    def task(self) -> TaskSpec:
        """23 labels."""
        return TaskSpec("multilabel", len(GENRES), GENRES, "f1_micro")

    def text(self, texts: Sequence[str]) -> str:
        """Chosen text of the outline and the plots."""
        outline, *plots = texts
        if self.text_field == "all_plots":
            return " ".join(plots)
        if self.text_field == "outline_first" and outline.strip():
            return outline
        return plots[0] if plots else ""

    def find(self, folder: Path) -> Path:
        """The folder with `split.json`."""
        for place in (folder, folder / "mmimdb"):
            if any((place / split).is_file() for split in _SPLITS):
                return place
        raise DataError(f"no split.json of MM-IMDb in {folder}{archives_in(folder)}; {self.obtain}")

    def describe(self, folder: Path, files: Listing) -> Description:
        """Reads `split.json` and the file of each film in it."""
        found = Description()
        split_file = first_of(files, _SPLITS)
        listed = read_json(folder, split_file, found)
        films: list[tuple[str, Split]] = []
        for name, (split, released) in RELEASE.items():
            ids = listed.get(name) if isinstance(listed, dict) else None
            if not isinstance(ids, list):
                if listed is not None:
                    found.problem(split_file, f"has no list {name!r}")
                continue
            found.counts[name] = (len(ids), released)
            for film in map(str, ids):
                if film.isalnum():
                    films.append((film, split))
                else:
                    found.problem(split_file, f"{film!r} in {name!r} is not the id of a film")
        other: dict[str, list[str]] = defaultdict(list)
        for film, split in track(films, f"{self.name}: reading films"):
            file = first_of(files, [f"{place}/{film}.json" for place in _DESCRIPTIONS] + [f"{film}.json"])
            if file not in files:
                found.problem(file, "is missing")
                continue
            content = read_json(folder, file, found)
            if content is not None:
                picture = first_of(files, [f"{place}/{film}.jpeg" for place in _PICTURES] + [f"{film}.jpeg"])
                self._add(found, file, content, film, split, picture, other)
        for genre, about in sorted(other.items()):
            found.remarks[f"{len(about):,} films have the genre {genre}, which is not one of the {len(GENRES)}"] = about
        unlabelled = [sample.id for sample in found.samples if not sample.labels]
        if unlabelled:
            found.remarks[f"{len(unlabelled):,} films have none of the {len(GENRES)} genres"] = unlabelled
        return found

    def _add(
        self,
        found: Description,
        file: str,
        content: Any,
        film: str,
        split: Split,
        picture: str,
        other: dict[str, list[str]],
    ) -> None:
        """Adds one film, or what is wrong with its description."""
        if not isinstance(content, dict):
            found.problem(file, "is not the description of a film")
            return
        genres, plots, outline = content.get("genres"), content.get("plot", []), content.get("plot outline", "")
        if not genres or not _strings(genres):
            found.problem(file, "has no label: 'genres' must be a list of names")
            return
        if not _strings(plots) or not isinstance(outline, str):
            found.problem(file, "'plot' must be a list of texts and 'plot outline' a text")
            return
        for genre in sorted(set(genres) - set(GENRES)):
            other[as_text(genre)].append(film)
        labels = tuple(index for index, genre in enumerate(GENRES) if genre in genres)
        found.samples.append(Sample(film, split, picture, labels, tuple(map(as_text, (outline, *plots)))))


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
