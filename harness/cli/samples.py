"""Texts and small pictures of test samples, for the HTML report of `harness report --samples`."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt

from harness import registry
from harness.errors import HarnessError
from harness.files import Folders
from harness.progress import say
from harness.record import RunRecord
from harness.reports.details import Picture, Show
from harness.types import DataTable

#: Pixels of the longer side of a picture, and its quality as WebP: about one kilobyte each.
SIDE = 64
QUALITY = 70


def sample_finder(records: Sequence[RunRecord], folders: Folders) -> Show:
    """Finds samples in the data sets of records, which are loaded when they are first asked for.

    A data set that cannot be loaded, or is another version than that of the records, costs its pictures only, with a
    warning.
    """
    configs = {str(record.dataset.get("fingerprint", "")): record.config.get("dataset", {}) for record in records}

    def show(dataset: str, fingerprint: str, ids: Sequence[str]) -> Mapping[str, Picture]:
        try:
            table = _load(dataset, configs.get(fingerprint, {}), folders)
            if table.spec.fingerprint != fingerprint:
                say(f"warning: no pictures of {dataset}: the data here are not those of the records.")
                return {}
            rows = {name: row for row, name in enumerate(table.ids)}
            return {name: _picture(table, rows[name]) for name in ids if name in rows}
        except HarnessError as error:
            say(f"warning: no pictures of {dataset}: {error}")
            return {}

    return show


def _load(name: str, options: Mapping[str, Any], folders: Folders) -> DataTable:
    config_class = registry.datasets.get(name)
    known = {field.name for field in fields(config_class) if field.init}
    config: Any = config_class(**{key: value for key, value in options.items() if key in known and key != "name"})
    table: DataTable = config.load(folders.data, folders.cache)
    return table


def _picture(table: DataTable, row: int) -> Picture:
    """First text and first picture that the sample has by nature."""
    text, image = "", ""
    for column, modality in enumerate(table.spec.modalities):
        if not table.available[row, column]:
            continue
        if modality.kind == "text" and not text:
            text = str(table.values[modality.name][row])[:200]
        elif modality.kind == "image" and not image:
            image = data_address(table.values[modality.name][row])
    return Picture(text, image)


def data_address(pixels: npt.NDArray[np.uint8]) -> str:
    """A small copy of a picture `[H, W, 3]` uint8 as a `data:` address."""
    from PIL import Image

    picture = Image.fromarray(pixels)
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
