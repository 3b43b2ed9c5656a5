"""The command: help, exit codes, one-line errors, JSON, light start-up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from harness import outbox, registry
from harness.cli import COMMANDS, main
from harness.cli.commands.describe import attribute_docs
from harness.cli.output import print_table
from harness.compose import GROUPS
from harness.config import MethodConfig, PathsConfig
from harness.files import Folders
from harness.testing.records import FakeRun, make_record, make_run

from .conftest import PLUGIN_FILE, TOY

PLUGIN = ["--plugin", str(PLUGIN_FILE)]
Capture = pytest.CaptureFixture[str]


def fails(capsys: Capture, code: int, *arguments: str) -> str:
    """Runs a command that must end with `code`, one line on stderr and nothing on stdout."""
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("harness: error: ")
    return lines[0]


def reads(capsys: Capture, *arguments: str) -> Any:
    """Runs a command that must print JSON."""
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(command: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: harness")
    assert "examples:" in text or "actions:" in text


def test_version_and_nothing_typed(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("harness ")
    assert main([]) == 2
    assert "commands:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sweeep"], "unknown command 'sweeep'. Did you mean 'sweep'?"),
        (["run"], "name a method"),
        (["run", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["run", "method=toy", "dataset=nowhere"], "unknown dataset 'nowhere'"),
        (["run", *TOY, "method=toy", "method.k=no"], "method.k=no"),
        (["run", "method=toy", *TOY[:2], "protocol=toy_2"], "outside 0 to 1"),
        (["run", "method=toy", *TOY[:2], "protocol=nothing"], "unknown protocol 'nothing'"),
        (["list", "methodz"], "unknown kind 'methodz'. Did you mean 'methods'?"),
        (["describe", "method"], "NAME"),
        (["describe", "method", "toi"], "unknown method 'toi'. Did you mean 'toy'?"),
        (["describe", "method", "toy", "dataset=toy_data"], "a method takes none"),
        (["describe", "protocol", "toy_7"], "outside 0 to 1"),
        (["describe", "protocol", "toy_0.5", "dataset=toy_data", "mask_seed=0,1"], "one data set"),
        (["describe", "protocol", "toy_0.5", "method=toy"], "unknown key 'method'"),
        (["mask", "paint"], "invalid choice"),
        (["mask", "show"], "needs a file"),
        (["mask", "show", "file", "dataset=toy_data"], "takes one file"),
        (["mask", "show", "file", "-o", "x"], "-o belongs to"),
        (["mask", "build", "dataset=toy_data", "protocol=toy_0.5", "mask_seed=0,1"], "one table at a time"),
        (["mask", "build", "dataset=toy_data", "protocol=toy_0.5", "train_seed=1"], "unknown key 'train_seed'"),
        (["mask", "diff", "file"], "takes 2 saved tables"),
        (["mask", "export", "file", "--format", "map"], "writes --format csv"),
        (["mask", "export", "file", "--split", "train"], "--split belongs to `harness mask import`"),
        (["mask", "import", "file", "--format", "csv", "dataset=toy_data"], "needs a file, --format"),
        (["mask", "import", "a.csv", "--format", "csv", "--split", "train", "-o", "x"], "not for --format csv"),
        (["mask", "import", "a.pt", "--format", "map", "--missing", "text", "-o", "x"], "not for --format map"),
        (["mask", "import", "a.csv", "b.csv", "--format", "csv", "-o", "x"], "reads one file"),
        (["mask", "import", "a.pt", "b.pt", "--format", "map", "--split", "train,train", "-o", "x"], "--split names"),
        (["report", "metod=redeem"], "unknown filter 'metod'. Did you mean 'method'"),
        (["report", "method"], "write FILTER=VALUE"),
        (["report", "--format", "html"], "add --out DIR"),
        (["report", "--samples"], "add --out DIR"),
        (["ui", "--port", "0"], "--port 0"),
        (["ui", "--port", "many"], "invalid int value"),
        (["sync", "tracking.url=x"], "Did you mean tracking.uri?"),
        (["doctor", "tracking.uri=a,b"], "one place of records"),
    ],
)
def test_wrong_usage_is_exit_2(arguments: list[str], says: str, capsys: Capture) -> None:
    assert says in fails(capsys, 2, *PLUGIN, *arguments)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import nowhere_to_be_found", "nowhere_to_be_found"),
        ("from harness import registry\nregistry.methods.register('x', int)", "not a subclass of MethodConfig"),
        (
            "from harness import registry\nregistry.methods.register('redeem', 'mine:Config', 'my file')",
            "registered twice: by missing-modality-harness",
        ),
    ],
)
def test_broken_plugin_files(text: str, says: str, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "broken.py"
    file.write_text(text)
    assert says in fails(capsys, 2, "--plugin", str(file), "list", "methods")


def test_missing_plugin_file(capsys: Capture) -> None:
    assert "no such file" in fails(capsys, 2, "list", "methods", "--plugin", "nowhere.py")


def test_files_of_one_name_in_two_folders_are_two_plugins(tmp_path: Path, capsys: Capture) -> None:
    files = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        files.append(folder / "mine.py")
        files[-1].write_text(PLUGIN_FILE.read_text().replace('register("', f'register("{name}_'))
    assert main([*(part for file in files for part in ("--plugin", str(file))), "list", "methods"]) == 0
    text = capsys.readouterr().out
    assert "a_toy" in text
    assert "b_toy" in text


def test_plugins_of_a_file_are_listed_before_or_after_the_command(capsys: Capture) -> None:
    for arguments in (["list", "methods", *PLUGIN], [*PLUGIN, "list", "methods"]):
        rows = {row["name"]: row for row in reads(capsys, *arguments)}
        assert rows["toy"]["owner"] == "the tests"
        assert rows["toy"]["summary"] == "a toy method"


@pytest.mark.parametrize("kind", list(registry.KINDS))
def test_list(kind: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")  # a pipe gets one line a name, however narrow the terminal
    rows = reads(capsys, "list", kind)
    assert [row["name"] for row in rows] == registry.KINDS[kind].names()
    assert main(["list", kind]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[0] == "name"
    assert len(lines) == len(rows) + 1


def test_tables_fit_the_terminal(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_table(["name", "text"], [["short", "word " * 60]])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 4
    assert max(map(len, lines)) <= 70
    assert {line[:7] for line in lines[2:]} == {" " * 7}


def test_list_without_a_kind_lists_all(capsys: Capture) -> None:
    assert set(reads(capsys, "list")) == set(registry.KINDS)


def test_a_broken_plugin_does_not_hide_the_others(capsys: Capture) -> None:
    registry.methods.register("broken", "nowhere_to_be_found:Config", "somebody")
    rows = {row["name"]: row["summary"] for row in reads(capsys, "list", "methods")}
    assert "cannot be loaded" in rows.pop("broken")
    assert len(rows) > 1
    assert "of somebody cannot be loaded" in fails(capsys, 2, "describe", "method", "broken")


EVERY = [(plugins.kind, name) for plugins in registry.KINDS.values() for name in plugins.names()]


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_describe_documents_every_plugin(kind: str, name: str, capsys: Capture) -> None:
    facts = reads(capsys, "describe", kind, name)
    assert facts["summary"]
    assert facts["description"]
    assert facts["citation"]
    undocumented = [row["option"] for row in facts["options"] if not row["doc"] and row["option"] != "preset"]
    assert undocumented == []
    assert main(["describe", kind, name]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{kind} {name}: ")
    assert all(row["option"] in text for row in facts["options"])


def test_describe_shows_options_and_presets(capsys: Capture) -> None:
    facts = reads(capsys, *PLUGIN, "describe", "method", "toy")
    options = {row["option"]: row for row in facts["options"]}
    assert options["k"] == {
        "option": "k",
        "type": "int",
        "default": 5,
        "required": False,
        "doc": "Neighbours asked, at least 1.",
    }
    assert options["limit"]["default"] is None
    assert facts["presets"]["official"] == {"k": 9, "gain": 2.0}


def test_attribute_docs_reads_sections_and_continuations() -> None:
    docs = attribute_docs(
        """Title.

        Attributes:
            first: One line
                and another.
            second (int): Typed.

        Raises:
            ValueError: Not an attribute.
        """
    )
    assert docs == {"first": "One line and another.", "second": "Typed."}


def test_describe_protocol_counts_on_the_named_data_set(capsys: Capture) -> None:
    facts = reads(capsys, *PLUGIN, "describe", "protocol", "toy_0.50", "dataset=toy_data")
    assert (facts["name"], facts["family"], facts["dataset"]) == ("toy_0.5", "toy_protocol", "toy_data")
    assert facts["counts"]["train"] == {"image+text": 5, "text": 5}


def test_describe_protocol_counts_on_the_default_data_set(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setitem(GROUPS, "dataset", (registry.datasets, "toy_data"))  # type: ignore[index]
    assert reads(capsys, *PLUGIN, "describe", "protocol", "toy_0.5")["counts"]["train"] == {"image+text": 5, "text": 5}
    facts = reads(capsys, "describe", "protocol", "sound_0.5")
    assert "counts" not in facts
    assert "sound" in facts["no_counts"]
    assert "sound" in fails(capsys, 2, "describe", "protocol", "sound_0.5", "dataset=toy_data")


def test_describe_protocol_counts_every_condition(capsys: Capture) -> None:
    name = "train:shared_0.9,test:any_0..1:0.5"
    facts = reads(capsys, *PLUGIN, "describe", "protocol", name, "dataset=toy_data")
    assert (facts["name"], facts["family"], facts["ranked_by"]) == (name, "train_test", "mean_over_grid")
    assert list(facts["counts"]) == ["train", "valid", "test:any_0", "test:any_0.5", "test:any_1"]
    assert facts["remarks"][0].startswith("shared_0.9: train: ")
    assert main([*PLUGIN, "describe", "protocol", name, "dataset=toy_data"]) == 0
    text = capsys.readouterr().out
    assert "test:any_0.5" in text
    assert facts["remarks"][0] in text


def test_mask_tables_of_several_conditions(tmp_path: Path, capsys: Capture) -> None:
    built = reads(capsys, *PLUGIN, "mask", "build", "dataset=toy_data", "protocol=train:both_0.5,test:patterns")
    file = "toy_data-train-both_0.5-test-patterns-mask0"
    assert (tmp_path / f"{file}.parquet").is_file()
    assert reads(capsys, "mask", "show", f"{file}.json") == built
    assert built["protocol"] == "train:both_0.5,test:patterns"
    assert [part for part in built["counts"] if part.startswith("test")] == [
        f"test:{name}" for name in built["conditions"]
    ]
    assert main([*PLUGIN, "mask", "verify", file, "dataset=toy_data"]) == 0
    assert "is what train:both_0.5,test:patterns draws" in capsys.readouterr().err


def test_dry_run_prints_the_grid_and_starts_nothing(capsys: Capture, home: Path) -> None:
    assert main(["run", *PLUGIN, "method=toy", "--dry-run", "train_seed=0,1", *TOY]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("name: toy\n") == 2
    assert "2 runs" in captured.err
    assert "harness.runner" not in sys.modules or not home.exists()


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    """Replaces the runner, which needs torch: its outcomes are the runs that a test puts into the list."""
    outcomes: list[FakeRun] = []
    monkeypatch.setitem(sys.modules, "harness.runner", types.SimpleNamespace(run_cells=lambda configs: outcomes))
    return outcomes


def test_run_prints_the_table_and_writes_a_report(runner: list[FakeRun], tmp_path: Path, capsys: Capture) -> None:
    runner += [make_run("redeem", 0.8), make_run("zero_fill", 0.7)]
    assert main(["run", *PLUGIN, "method=toy,plain", *TOY, "--report", "out/report"]) == 0
    captured = capsys.readouterr()
    assert "redeem" in captured.out
    assert "zero_fill" in captured.out
    assert "wrote" in captured.err
    assert (tmp_path / "out" / "report" / "report.html").is_file()


def test_run_ends_with_1_when_a_cell_failed(runner: list[FakeRun], capsys: Capture) -> None:
    runner += [make_run("redeem", 0.8), FakeRun(make_record("zero_fill", status="failed"))]
    assert main(["run", *PLUGIN, "method=toy,plain", *TOY, "--no-table"]) == 1
    assert capsys.readouterr().out == ""


def test_options_may_stand_between_overrides(runner: list[FakeRun], capsys: Capture) -> None:
    runner += [make_run("redeem", 0.8)]
    assert main(["run", "method=toy", "--no-table", *TOY, *PLUGIN, "train_seed=1"]) == 0
    assert capsys.readouterr().out == ""


def test_mask_build_show_verify(tmp_path: Path, capsys: Capture) -> None:
    build = [*PLUGIN, "mask", "build", "dataset=toy_data", "protocol=toy_0.5", "mask_seed=3", "-o", "tables/toy_0.5"]
    built = reads(capsys, *build)
    assert (tmp_path / "tables" / "toy_0.5.parquet").is_file()
    for file in ("tables/toy_0.5", "tables/toy_0.5.parquet", "tables/toy_0.5.json"):
        assert reads(capsys, "mask", "show", file) == built
    assert main([*PLUGIN, "mask", "verify", "tables/toy_0.5", "dataset=toy_data"]) == 0
    assert "is what toy_0.5 draws" in capsys.readouterr().err

    assert "mask table is for" in fails_after(capsys, 3, *PLUGIN, "mask", "verify", "tables/toy_0.5", *OTHER_DATA)
    side = tmp_path / "tables" / "toy_0.5.json"
    side.write_text(side.read_text().replace('"mask_seed": 3', '"mask_seed": 4'))
    assert "is not what toy_0.5 draws" in fails_after(
        capsys, 3, *PLUGIN, "mask", "verify", "tables/toy_0.5", "dataset=toy_data"
    )
    side.write_text(side.read_text().replace(built["sha256"], "0" * 64))
    assert "was changed after it was saved" in fails(capsys, 3, "mask", "verify", "tables/toy_0.5")
    assert "no such file" in fails(capsys, 3, "mask", "show", "nowhere")


def test_mask_diff_export_import(tmp_path: Path, capsys: Capture) -> None:
    for rate in ("0.5", "0.8"):
        build = [*PLUGIN, "mask", "build", "dataset=toy_data", f"protocol=toy_{rate}", "-o", f"toy_{rate}"]
        built = reads(capsys, *build)
    found = reads(capsys, "mask", "diff", "toy_0.5", "toy_0.8.json")
    assert (found["same"], found["same_dataset"]) == (False, True)
    assert found["parts"]["train"] == {
        "in": "both",
        "shared": 10,
        "only_first": 0,
        "only_second": 0,
        "differ": 3,
        "changes": {"image+text -> text": 3},
        "ids": found["parts"]["train"]["ids"],
    }
    assert main(["mask", "diff", "toy_0.5", "toy_0.8"]) == 0
    text = capsys.readouterr().out
    assert "image+text -> text: 3" in text
    assert found["parts"]["train"]["ids"][0] in text

    written = reads(capsys, "mask", "export", "toy_0.8", "--format", "csv")
    assert written == {"file": "toy_0.8.csv", "sha256": built["sha256"]}
    imported = reads(
        capsys, *PLUGIN, "mask", "import", "toy_0.8.csv", "--format", "csv", "dataset=toy_data", "-o", "mine"
    )
    assert imported["sha256"] == built["sha256"]
    assert reads(capsys, "mask", "diff", "mine", "toy_0.8")["same"]
    assert main([*PLUGIN, "mask", "verify", "mine", "dataset=toy_data"]) == 0
    assert "fits toy_data; an imported table is not drawn again" in capsys.readouterr().err
    again = [*PLUGIN, "mask", "import", "toy_0.8.csv", "--format", "csv", *OTHER_DATA, "-o", "mine"]
    assert "not in the file" in fails(capsys, 3, *again)


def test_mask_import_of_official_files(tmp_path: Path, capsys: Capture) -> None:
    torch = pytest.importorskip("torch")
    torch.save(torch.tensor([0.0, 1, 2, 0, 0, 0, 0, 0, 0, 1]), tmp_path / "train.pt")
    torch.save(torch.tensor([2.0, 2, 0, 0, 0]), tmp_path / "test.pt")
    common = [*PLUGIN, "mask", "import", "--format"]
    files = ["test.pt", "train.pt", "--split", "test,train", "dataset=toy_data", "-o", "map"]
    counts = reads(capsys, *common, "map", *files)["counts"]
    assert counts["train"] == {"image": 2, "image+text": 7, "text": 1}
    assert counts["valid"] == {"image+text": 5}
    assert counts["test"] == {"image+text": 3, "text": 2}
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"missing_mask_5": [0, 1] * 10}).assign(item_id=[f"s{row:02d}" for row in range(20)])
    frame["item_id"] = frame["item_id"].astype(object)
    frame.columns = pd.Index(list(frame), dtype=object)
    frame.to_pickle(tmp_path / "table.pkl")
    files = ["table.pkl", "--missing", "text", "--column", "missing_mask_5", "dataset=toy_data", "-o", "redeem"]
    counts = reads(capsys, *common, "redeem", *files)["counts"]
    assert counts["train"] == {"image": 5, "image+text": 5}


OTHER_DATA = ["dataset=toy_data", "dataset.samples=24"]


def fails_after(capsys: Capture, code: int, *arguments: str) -> str:
    """Like `fails`, for commands that say something before."""
    assert main(arguments) == code
    return capsys.readouterr().err.splitlines()[-1]


def test_no_write_permission(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").write_text("a file is no folder, not even for root")
    arguments = ["mask", "build", "dataset=toy_data", "protocol=toy_0.5", "-o", "file/below/table"]
    assert "cannot write to" in fails(capsys, 3, *PLUGIN, *arguments)


def test_report_without_runs(capsys: Capture, home: Path) -> None:
    assert main(["report", "method=redeem"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no runs with method=redeem are recorded" in captured.err
    assert reads(capsys, "report")["tables"] == []
    assert not home.exists(), "reading creates nothing"


def test_sync_with_an_empty_outbox(capsys: Capture) -> None:
    assert main(["sync"]) == 0
    assert "0 sent" in capsys.readouterr().err


def test_sync_to_an_unreachable_server_keeps_the_runs(capsys: Capture) -> None:
    folders = Folders.resolve(PathsConfig())
    record = make_record("redeem")
    outbox.put(folders, "harness/openmoji", record, {})
    line = fails(capsys, 1, "sync", "tracking.uri=http://me:secret@127.0.0.1:9")
    assert "cannot be reached" in line
    assert "secret" not in line
    assert outbox.entries(folders) == [record.run_id]


def test_ui_of_an_unreachable_server(capsys: Capture) -> None:
    line = fails(capsys, 1, "ui", "tracking.uri=http://me:secret@127.0.0.1:9")
    assert "cannot be reached" in line
    assert "secret" not in line


def test_interrupt_is_130(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    import harness.cli.commands.list as command

    def interrupted(arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "execute", interrupted)
    assert main(["list"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    import harness.cli.commands.list as command

    def broken(arguments: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(command, "execute", broken)
    with pytest.raises(ZeroDivisionError):
        main(["list"])


LIGHT = [
    ["--help"],
    ["list"],
    ["run", "--help"],
    ["run", "method=redem"],
    ["run", "method=majority", "protocol=both_0.7", "--dry-run"],
    ["describe", "method", "redeem"],
    ["describe", "protocol", "both_0.7", "dataset=synthetic"],
    ["describe", "protocol", "train:shared_0.5,test:patterns", "dataset=synthetic"],
    ["report"],
]


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
def test_start_up_imports_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    heavy = ("torch", "transformers", "mlflow", "pandas", "sklearn", "matplotlib", "scipy")
    program = (
        "import sys\nfrom harness.cli import main\n"
        "try:\n    code = main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        f"print('LOADED', [name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=dict(os.environ),
        check=False,
    )
    assert done.stderr.splitlines()[-1] == "LOADED []", done.stderr
    assert "Traceback" not in done.stderr


def test_only_the_named_plugins_are_imported(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom harness.cli import main\ncode = main(sys.argv[1:])\n"
        "print(code, 'harness.methods.redeem.config' in sys.modules)"
    )
    arguments = [*PLUGIN, "run", "method=toy", "--dry-run", *TOY]
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, *arguments], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout.splitlines()[-1] == "0 False"


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -P -m harness.cli list | true"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr == ""


def test_source_fingerprint_covers_the_right_files() -> None:
    redeem = registry.methods.get("redeem")
    assert {file.name for file in redeem.source_files()} >= {"config.py", "model.py", "modules.py"}
    assert all("redeem" in file.parts for file in redeem.source_files())
    assert {file.name for file in redeem.shared_files()} >= {"heads.py", "tokens.py"}

    class Elsewhere(MethodConfig):
        target = "harness.methods.common.heads:Head"

    assert {file.name for file in Elsewhere.source_files()} == {"test_cli.py", "heads.py"}
