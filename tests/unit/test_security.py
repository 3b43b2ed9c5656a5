"""What files and names of others may not do: run code, fill the memory, learn a secret or leave one behind."""

from __future__ import annotations

import ast
import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import harness
from harness.cell_files import read_cells
from harness.cli import main
from harness.compose import compose, from_dict, to_dict
from harness.datasets.folder import FolderConfig
from harness.errors import DataError, UsageError
from harness.files import MAX_TEXT, check_parquet
from harness.masking import MaskTable
from harness.methods.common.hub import Pretrained

ROOT = Path(harness.__file__).parent.parent
SOURCES = [
    path for top in ("harness", "methods", "datasets", "protocols", "reports") for path in (ROOT / top).rglob("*.py")
]

#: Calls that execute what they are given, and the keyword that makes a call safe; None: never.
CALLS: dict[str, tuple[str, object] | None] = {
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "np.lib.format.read_array": ("allow_pickle", False),
    "torch.load": ("weights_only", True),
    **dict.fromkeys(("eval", "exec", "compile", "os.system", "os.popen", "pd.read_pickle", "pandas.read_pickle")),
    **dict.fromkeys(("pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "shelve.open", "dill.load")),
    **dict.fromkeys(("yaml.load", "yaml.unsafe_load", "yaml.full_load", "marshal.loads", "torch.hub.load")),
    **dict.fromkeys(("shutil.unpack_archive", "np.fromregex")),
}
#: Methods of any object that write by names of an archive, and keywords that no call may have.
METHODS = ("extractall", "extract", "read_pickle")
KEYWORDS = (("trust_remote_code", True), ("shell", True), ("allow_pickle", True), ("weights_only", False))
#: YAML is read with loaders of plain data.
EXCUSED = {("presets.py", "yaml.load"), ("files.py", "yaml.load")}


def calls() -> Iterator[tuple[Path, ast.Call, str]]:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield path, node, ast.unparse(node.func)


def test_no_call_executes_what_a_file_holds() -> None:
    found = []
    for path, node, name in calls():
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        wanted = CALLS.get(name)
        safe = wanted is not None and given.get(wanted[0]) == repr(wanted[1])
        if name in CALLS and not safe and (path.name, name) not in EXCUSED:
            found.append(f"{path.name}:{node.lineno} {name}")
        if name.rpartition(".")[2] in METHODS and "." in name and not name.startswith("re."):
            found.append(f"{path.name}:{node.lineno} {name}")
        found += [f"{path.name}:{node.lineno} {key}" for key, value in KEYWORDS if given.get(key) == repr(value)]
    assert found == []


def test_the_walk_would_find_them() -> None:
    """The names above are those that the sources use where they are allowed."""
    used = {name for _, _, name in calls()}
    assert {"np.load", "torch.load", "np.lib.format.read_array", "yaml.load"} <= used
    assert len(SOURCES) > 150


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.target,)


def test_weights_of_others_run_nothing(tmp_path: Path) -> None:
    """A folder in the hub's format with pickled weights, and one that brings code along."""
    import torch
    from transformers import BertConfig, BertModel

    target, folder = tmp_path / "ran", tmp_path / "model"
    tiny = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
    BertModel(tiny).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    code = f"from pathlib import Path\nPath({str(target)!r}).touch()\nclass Mine: pass\n"
    (folder / "modeling_mine.py").write_text(code)
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "modeling_mine.Mine"}}))
    Pretrained("BERT", str(folder), "backbone").load(BertModel)
    (folder / "model.safetensors").unlink()
    torch.save({"x": Bomb(target)}, folder / "pytorch_model.bin")
    with pytest.raises(DataError, match="is not a whole BERT"):
        Pretrained("BERT", str(folder), "backbone").load(BertModel)
    assert not target.exists()


def test_arrays_of_others_run_nothing(tmp_path: Path) -> None:
    target, folder = tmp_path / "ran", tmp_path / "data"
    folder.mkdir()
    rows = "".join(
        f"{split},{split},{label},x.npy\n" for split, label in zip(("train", "valid", "test"), "aba", strict=True)
    )
    (folder / "manifest.csv").write_text("id,split,label,sound\n" + rows)
    np.save(folder / "x.npy", np.array([Bomb(target)], dtype=object), allow_pickle=True)
    config = FolderConfig(folder=str(folder), modalities={"sound": "features"})
    with pytest.raises(DataError, match=r"is not a readable \.npy array of numbers"):
        config.load(tmp_path, tmp_path / "cache")
    (folder / "x.npy").write_bytes(pickle.dumps(Bomb(target)))
    with pytest.raises(DataError, match=r"is not a readable \.npy array of numbers"):
        config.load(tmp_path, tmp_path / "cache")
    assert not target.exists()


def test_pictures_of_others_start_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow opens PostScript with Ghostscript; we open six formats, all decoded by Pillow itself."""
    import subprocess

    (tmp_path / "x.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    )
    (tmp_path / "manifest.csv").write_text("id,split,label,photo\na,train,a,x.png\nb,valid,b,x.png\nc,test,a,x.png\n")
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("a program was started"))
    with pytest.raises(DataError, match="is not a readable picture of JPEG, PNG, GIF, BMP, WEBP, TIFF"):
        FolderConfig(folder=str(tmp_path), modalities={"photo": "image"}).load(tmp_path, tmp_path / "cache")


def test_one_long_text_in_many_rows_is_refused_unread(tmp_path: Path) -> None:
    """A kilobyte of Parquet may stand for gigabytes: the text is stored once, and each row is a number."""
    rows = 4000
    frame = pd.DataFrame({"id": ["x" * (MAX_TEXT // rows + 1000)] * rows, "split": "train"})
    frame.to_parquet(tmp_path / "m.parquet", index=False)
    assert (tmp_path / "m.parquet").stat().st_size < 10_000_000
    with pytest.raises(DataError, match=r"holds more than 1,073,741,824 bytes of text up to column 'id'"):
        check_parquet(tmp_path / "m.parquet")
    (tmp_path / "m.json").write_text("{}")
    with pytest.raises(DataError, match="bytes of text"):
        MaskTable.load(tmp_path / "m")


def test_a_manifest_of_too_many_values_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pd.DataFrame({"id": ["a", "b"]}).to_parquet(tmp_path / "manifest.parquet", index=False)
    monkeypatch.setattr("harness.files.MAX_VALUES", 1)
    with pytest.raises(DataError, match="claims 2 values; at most 1 are read"):
        FolderConfig(folder=str(tmp_path), modalities={"title": "text"}).load(tmp_path, tmp_path / "cache")


def test_a_record_cannot_ask_for_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra's command line knows `${oc.env:NAME}`; a record of others is taken as it is."""
    monkeypatch.setenv("SECRET_OF_THIS_TEST", "hunter2")
    data = to_dict(compose(["method=zero_fill"])[0])
    data["paths"]["home"] = r"${oc.env:SECRET_OF_THIS_TEST}/\${x}"
    assert from_dict(data).paths.home == r"${oc.env:SECRET_OF_THIS_TEST}/\${x}"


def test_a_few_lines_of_yaml_cannot_stand_for_gigabytes(tmp_path: Path) -> None:
    """Nine references to nine references, ten times over; and a list that holds itself."""
    lines = ["- &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"- &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 10)]
    for text in ("\n".join(lines), "- {method: &a [*a]}"):
        (tmp_path / "cells.yaml").write_text(text)
        with pytest.raises(UsageError, match="references to other parts are not read"):
            read_cells(tmp_path / "cells.yaml")


def test_a_grid_without_end_is_refused() -> None:
    with pytest.raises(UsageError, match="at most 100,000 are planned"):
        compose(["method=zero_fill", "train_seed=range(0,1000000000)"])
    with pytest.raises(UsageError, match="the grid has 1,000,000 cells"):
        compose(["method=zero_fill", "train_seed=range(0,1000)", "mask_seed=range(0,1000)"])


def test_no_password_stays_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A run whose server cannot be reached: its record waits in the outbox, without what opens the server."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "hunter2")
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path))
    uri = "'tracking.uri=\"http://me:hunter2@127.0.0.1:9/?token=hunter2\"'".strip("'")
    cell = ["method=zero_fill", "dataset=synthetic", "dataset.samples=60", "trainer.epochs=1", uri]
    main(["run", *cell])
    shown = capfd.readouterr()
    assert "hunter2" not in shown.out + shown.err
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any("outbox" in path.parts for path in written)
    assert [path for path in written if b"hunter2" in path.read_bytes()] == []


def test_a_plugin_file_runs_only_when_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not because it lies in the current folder or in the data; `--plugin --help` says what it does."""
    (tmp_path / "plugin.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    (tmp_path / "conftest.py").write_text((tmp_path / "plugin.py").read_text())
    monkeypatch.chdir(tmp_path)
    assert main(["list", "methods"]) == 0
    assert not (tmp_path / "ran").exists()
    assert main(["--plugin", "plugin.py", "list", "methods"]) == 0
    assert (tmp_path / "ran").exists()
