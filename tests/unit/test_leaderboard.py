import hashlib
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from harness.errors import DataError
from harness.record import AuditResult
from harness.reports.leaderboard import Leaderboard, grid_rates
from harness.reports.table import Row, Table
from harness.testing.records import FakeRun, make_conditions_run, make_predictions, make_record, make_run
from harness.types import Predictions


def only_table(runs: list[FakeRun]) -> Table:
    (table,) = Leaderboard.build(runs).tables
    return table


def badges(row: Row) -> list[str]:
    return [badge.text for badge in row.badges]


def row_of(table: Table, name: str) -> Row:
    (row,) = [row for row in table.rows if row.name == name]
    return row


def test_no_runs_no_tables() -> None:
    assert Leaderboard.build([]).tables == []


def test_one_run_shows_its_own_interval() -> None:
    run = make_run("redeem", 0.8)
    table = only_table([run])
    (row,) = table.rows
    assert (row.name, row.rank, row.score, row.seeds) == ("redeem", 1, pytest.approx(0.8), [0])
    assert [row.low, row.high] == run.record.results[0].intervals["accuracy"]
    assert row.per_pattern == {name: scores["accuracy"] for name, scores in run.record.results[0].per_pattern.items()}
    assert table.patterns == ["text+image", "text", "image"]
    assert table.pattern_counts == run.record.results[0].pattern_counts
    assert row.gap_recovered is None
    assert badges(row) == ["1 seed"]


def test_seeds_are_one_row_with_an_interval_over_seeds_and_samples() -> None:
    runs = [make_run("redeem", accuracy, train_seed=seed) for seed, accuracy in enumerate((0.7, 0.8, 0.9))]
    (row,) = only_table(runs).rows
    assert row.score == pytest.approx(0.8)
    assert row.seeds == [0, 1, 2]
    assert badges(row) == []
    single = runs[1].record.results[0].intervals["accuracy"]
    assert row.low is not None
    assert row.high is not None
    assert row.high - row.low > single[1] - single[0]
    assert row.low < 0.8 < row.high


@pytest.mark.parametrize(
    "other", [{"mask": "n" * 64}, {"supervision": "complete"}, {"protocol": "text_0.7"}, {"dataset": "cdda"}]
)
def test_what_may_not_be_compared_never_meets(other: dict[str, str]) -> None:
    tables = Leaderboard.build([make_run("redeem", 0.8), make_run("map", 0.7, **other)]).tables
    assert [[row.name for row in table.rows] for table in tables] in ([["redeem"], ["map"]], [["map"], ["redeem"]])
    assert len({table.title for table in tables}) == 2
    assert all(row.rank == 1 for table in tables for row in table.rows)


def test_another_metric_version_is_another_table() -> None:
    newer = make_run("map", 0.8)
    newer.record.metric_versions["accuracy"] = "2"
    assert len(Leaderboard.build([make_run("redeem", 0.8), newer]).tables) == 2


def test_ranks_ties_and_what_is_not_ranked() -> None:
    runs = [
        make_run("best", 0.90, count=500),
        make_run("second", 0.89, count=500),
        make_run("worst", 0.50, count=500),
        make_run("complete", 0.95, count=500, oracle=True),
        make_run("leaky", 0.99, count=500, audits=[AuditResult("self retrieval", False, "3 found themselves")]),
        make_run("warned", 0.30, count=500, audits=[AuditResult("dead loss", False, "align", "warning")]),
        FakeRun(make_record("broken", status="failed")),
    ]
    table = only_table(runs)
    assert [(row.name, row.rank) for row in table.rows] == [
        ("leaky", None),
        ("complete", None),
        ("best", 1),
        ("second", 1),
        ("worst", 3),
        ("warned", 4),
        ("broken", None),
    ]
    assert "audit failed, not ranked" in badges(row_of(table, "leaky"))
    assert "oracle, not ranked" in badges(row_of(table, "complete"))
    assert "audit warning" in badges(row_of(table, "warned"))
    broken = row_of(table, "broken")
    assert (broken.status, broken.score, broken.error) == (
        "failed",
        None,
        "TrainingError: the loss is not finite at step 3.",
    )


def test_an_incomplete_grid_says_so() -> None:
    runs = [make_run("redeem", 0.8, train_seed=seed) for seed in range(5)]
    runs += [make_run("map", 0.7, train_seed=seed) for seed in (0, 2, 4)]
    runs += [FakeRun(make_record("map", status="failed", train_seed=1))]
    row = row_of(only_table(runs), "map")
    assert row.seeds == [0, 2, 4]
    assert row.missing_seeds == [1, 3]
    assert badges(row) == ["1 failed", "3 of 5 seeds"]
    assert [run["status"] for run in row.runs] == ["finished", "failed", "finished", "finished"]


def test_gap_recovered_lies_between_floor_and_oracle() -> None:
    floor = make_run("zero_fill", 0.6, reference="floor")
    oracle = make_run("complete", 0.9, oracle=True, reference="ceiling")
    other_floor = make_run("majority", 0.2, reference="floor")
    table = only_table([floor, oracle, other_floor, make_run("redeem", 0.75), make_run("bad", 0.5)])
    gaps = {row.name: row.gap_recovered for row in table.rows}
    assert gaps == pytest.approx({"complete": 1, "redeem": 0.5, "zero_fill": 0, "bad": -1 / 3, "majority": -4 / 3})


def test_the_difference_to_the_floor_is_tested_in_pairs() -> None:
    runs = [make_run("zero_fill", 0.6 + seed / 100, train_seed=seed, reference="floor") for seed in range(3)]
    runs += [make_run("redeem", 0.8 + seed / 100, train_seed=seed) for seed in range(3)]
    table = only_table(runs)
    over = row_of(table, "redeem").over_floor
    assert over is not None
    assert over.value == pytest.approx(0.2)
    assert 0.1 < over.low < 0.2 < over.high < 0.3
    assert over.p < 0.001
    assert row_of(table, "zero_fill").over_floor is None


@pytest.mark.parametrize("oracle", [None, 0.6, 0.5])
def test_gap_is_blank_where_it_is_undefined(oracle: float | None) -> None:
    runs = [make_run("zero_fill", 0.6, reference="floor"), make_run("redeem", 0.75)]
    if oracle is not None:
        runs.append(make_run("complete", oracle, oracle=True))
    assert {row.gap_recovered for row in only_table(runs).rows} == {None}


def test_gap_uses_the_reference_of_the_same_backbone() -> None:
    def on(backbone: str, run: FakeRun) -> FakeRun:
        return replace(run, record=replace(run.record, backbone=backbone, run_id=run.record.run_id + backbone))

    runs = [
        on(backbone, run)
        for backbone, shift in (("fusion", 0.0), ("vilt_b32", 0.2))
        for run in (
            make_run("zero_fill", 0.4 + shift, reference="floor"),
            make_run("complete", 0.6 + shift, oracle=True),
            make_run("redeem", 0.5 + shift),
        )
    ]
    runs.append(on("", make_run("knn_vote", 0.5)))
    rows = only_table(runs).rows
    assert [row.gap_recovered for row in rows if row.method == "redeem"] == pytest.approx([0.5, 0.5])
    assert [row.gap_recovered for row in rows if row.method == "knn_vote"] == [None]


def test_oracle_patterns_are_those_of_the_other_rows() -> None:
    oracle = make_run("complete", 0.9, oracle=True)
    expected = {name: scores["accuracy"] for name, scores in oracle.record.results[0].per_pattern.items()}
    seen = replace(oracle.predictions(), present=np.ones_like(oracle.predictions().present))
    result = oracle.record.results[0]
    result.per_pattern, result.pattern_counts = {"text+image": {"accuracy": 0.9}}, {"text+image": 200}
    table = only_table([replace(oracle, scores=seen), make_run("redeem", 0.8)])
    assert row_of(table, "complete").per_pattern == pytest.approx(expected)
    alone = only_table([replace(oracle, scores=seen)])
    assert row_of(alone, "complete").per_pattern == {"text+image": 0.9}


def test_other_settings_are_other_rows_with_the_difference_in_the_name() -> None:
    def config(epochs: int, home: str) -> dict[str, object]:
        return {"method": {"name": "redeem"}, "trainer": {"epochs": epochs}, "paths": {"home": home}}

    runs = [
        replace(
            make_run("redeem", 0.8, train_seed=seed, config=config(epochs, f"/home/{seed}")), mlflow_run_id=str(seed)
        )
        for seed in range(2)
        for epochs in (5, 30)
    ]
    for number, run in enumerate(runs):
        run.record.run_id = str(number)
    table = only_table(runs)
    assert sorted(row.name for row in table.rows) == ["redeem [trainer.epochs=30]", "redeem [trainer.epochs=5]"]
    assert all(row.seeds == [0, 1] for row in table.rows)
    edited = make_run("redeem", 0.8, train_seed=0)
    edited.record.fingerprints["method"] = "abc"
    edited.record.run_id = "edited"
    names = sorted(row.name for row in only_table([make_run("redeem", 0.8), edited]).rows)
    assert names == ["redeem [code.method=abc]", "redeem [code.method=unset]"]


def test_a_table_says_in_what_its_rows_were_not_treated_alike() -> None:
    """An older version's runs, or options of one method alone, beside others."""

    def notes(*, epochs: int, dropout: float) -> list[str]:
        runs = []
        for method, (own_epochs, own_dropout) in {"redeem": (20, 0.3), "map": (epochs, dropout)}.items():
            config = {"method": {"name": method}, "trainer": {"epochs": own_epochs}}
            run = make_run(method, 0.8, config=config | {"backbone": {"name": "fusion", "dropout": own_dropout}})
            run.record.backbone = "fusion"
            runs.append(run)
        return [note for note in only_table(runs).notes if note.startswith("Rows differ")]

    assert notes(epochs=20, dropout=0.3) == []
    assert notes(epochs=30, dropout=0.1) == [
        "Rows differ in how they were trained or what they read: trainer.epochs (30, 20), fusion.dropout (0.1, 0.3)."
    ]


def test_a_name_tells_two_differences_or_as_many_as_it_takes() -> None:
    """Runs of an older version of everything, in a store that others have filled before."""

    def names(*settings: tuple[int, int, int, int]) -> list[str]:
        runs = []
        for number, values in enumerate(settings):
            options = dict(zip(("epochs", "lr", "patience", "warmup"), values, strict=True))
            run = make_run("redeem", 0.8, config={"method": {"name": "redeem"}, "trainer": options})
            run.record.run_id = str(number)
            runs.append(run)
        return sorted(row.name for row in only_table(runs).rows)

    assert names((5, 1, 7, 0), (9, 2, 8, 1)) == [
        "redeem [trainer.epochs=5, trainer.lr=1 and 2 more]",
        "redeem [trainer.epochs=9, trainer.lr=2 and 2 more]",
    ]
    assert names((5, 1, 7, 0), (5, 1, 8, 1), (9, 2, 8, 1)) == [
        "redeem [trainer.epochs=5, trainer.lr=1, trainer.patience=7 and 1 more]",
        "redeem [trainer.epochs=5, trainer.lr=1, trainer.patience=8 and 1 more]",
        "redeem [trainer.epochs=9, trainer.lr=2, trainer.patience=8 and 1 more]",
    ]


def test_one_run_id_counts_once() -> None:
    (row,) = only_table([make_run("redeem", 0.8), make_run("redeem", 0.8)]).rows
    assert len(row.runs) == 1


def repeat(run: FakeRun, **seeds: int) -> FakeRun:
    """The same run under another mask or evaluation seed."""
    name = f"{run.record.run_id}{seeds}".encode()
    record = replace(run.record, run_id=hashlib.sha256(name).hexdigest(), seeds=run.record.seeds | seeds)
    return replace(run, record=record)


def test_a_train_seed_that_was_run_again_is_no_further_seed() -> None:
    first, second = make_run("redeem", 0.70, train_seed=0), make_run("redeem", 0.80, train_seed=1)
    again = repeat(first, eval_seed=1)
    table = only_table([again, first, second])
    (row,) = table.rows
    assert (row.seeds, row.score, badges(row)) == ([0, 1], pytest.approx(0.75), ["2 seeds"])
    assert [run["run_id"] for run in row.runs] == [first.record.run_id, second.record.run_id]
    assert [again.record.run_id[:12] in note for note in table.notes] == [True]


def test_repeated_seeds_add_no_certainty() -> None:
    # As under protocol `complete`, whose masks do not depend on mask_seed.
    once = [
        make_run(method, accuracy + shift, train_seed=seed)
        for method, shift in (("redeem", 0.0), ("map", -0.05))
        for seed, accuracy in enumerate((0.66, 0.70, 0.74))
    ]
    often = once + [repeat(run, mask_seed=seed) for run in once for seed in (1, 2)]
    assert only_table(often).rows == only_table(once).rows
    assert only_table(often).pairs == only_table(once).pairs


def test_a_failed_run_does_not_stand_for_its_seed() -> None:
    failed = FakeRun(make_record("redeem", status="failed"))
    (row,) = only_table([failed, repeat(make_run("redeem", 0.7), eval_seed=1)]).rows
    assert (row.seeds, row.score, badges(row)) == ([0], pytest.approx(0.7), ["1 failed", "1 seed"])


def test_lost_predictions_are_said_not_ranked() -> None:
    class Lost(FakeRun):
        def predictions(self) -> Predictions:
            raise DataError("predictions.parquet: gone.")

    lost = Lost(make_record("lost", make_predictions(0.9)))
    table = only_table([make_run("redeem", 0.8), lost])
    assert row_of(table, "lost").rank is None
    assert row_of(table, "redeem").rank == 1
    assert table.notes == ["lost: not ranked, its predictions cannot be read (predictions.parquet: gone.)"]


def test_other_samples_are_never_ranked_together() -> None:
    table = only_table([make_run("redeem", 0.8), make_run("map", 0.7, count=100)])
    assert [row.rank for row in table.rows] == [None, None]
    assert "not about the same test samples" in table.notes[0]


def test_an_undefined_score_is_a_badge_not_a_number() -> None:
    run = make_run("redeem", 0.8)
    run.record.results[0].metrics["accuracy"] = float("nan")
    (row,) = only_table([run]).rows
    assert row.score is None
    assert "accuracy undefined in 1" in badges(row)


def test_an_unregistered_metric_has_scores_but_no_ranks() -> None:
    run = make_run("redeem", 0.8)
    result = run.record.results[0]
    result.metrics["own"] = 0.5
    run.record.primary_metric = "own"
    table = only_table([run])
    assert (table.rows[0].score, table.rows[0].rank) == (0.5, None)
    assert "own is not registered" in table.notes[0]


def test_lower_is_better() -> None:
    runs = [make_run(name, accuracy, count=400) for name, accuracy in (("good", 0.9), ("bad", 0.5))]
    for run in runs:
        record, predictions = run.record, run.predictions()
        record.primary_metric, record.higher_is_better = "log_loss", False
        probabilities = np.exp(predictions.logits) / np.exp(predictions.logits).sum(axis=1, keepdims=True)
        loss = -np.log(probabilities[np.arange(400), predictions.labels]).mean()
        record.results[0].metrics["log_loss"] = float(loss)
    table = only_table(runs)
    assert [(row.name, row.rank) for row in table.rows] == [("good", 1), ("bad", 2)]


GRID = {"both_0": 0.9, "both_0.5": 0.8, "both_1": 0.4}


def test_patterns_are_ranked_by_the_pool() -> None:
    runs = [
        make_conditions_run(name, {"text": value, "image": value + 0.1}, protocol="patterns", train_seed=seed)
        for name, value in (("good", 0.8), ("poor", 0.5))
        for seed in range(3)
    ]
    table = only_table(runs)
    assert table.key.condition == "pooled"
    assert "patterns, ranked by pooled" in table.title
    assert (table.conditions, table.beside) == (["text", "image"], ["mean_of_patterns"])
    assert table.condition_counts == {"text": 200, "image": 200}
    good, poor = table.rows
    assert (good.name, good.rank, poor.rank) == ("good", 1, 2)
    assert good.score == pytest.approx(0.85)
    assert good.per_condition == pytest.approx({"text": 0.8, "image": 0.9})
    assert good.beside == pytest.approx({"mean_of_patterns": 0.85})
    assert good.drop is None, "patterns have no order"
    assert good.per_pattern == {}
    assert good.low is not None
    assert good.high is not None
    assert good.low < 0.85 < good.high
    assert table.notes == []


def test_grids_are_ranked_by_their_mean_beside_the_drop() -> None:
    steep = make_conditions_run("steep", GRID, how="mean")
    flat = make_conditions_run("flat", dict.fromkeys(GRID, 0.75), how="mean")
    oracle = make_conditions_run("complete", dict.fromkeys(GRID, 0.95), how="mean", oracle=True)
    floor = make_conditions_run("zero_fill", dict.fromkeys(GRID, 0.55), how="mean", reference="floor")
    table = only_table([steep, flat, oracle, floor])
    assert table.key.condition == "mean_over_grid"
    assert [(row.name, row.rank) for row in table.rows] == [
        ("complete", None),
        ("flat", 1),
        ("steep", 1),
        ("zero_fill", 3),
    ]
    assert row_of(table, "steep").drop == pytest.approx(0.5)
    assert row_of(table, "flat").drop == pytest.approx(0.0)
    assert row_of(table, "steep").score == pytest.approx(0.7)
    assert row_of(table, "steep").gap_recovered == pytest.approx((0.7 - 0.55) / (0.95 - 0.55))
    assert row_of(table, "complete").per_condition == pytest.approx(dict.fromkeys(GRID, 0.95))
    over = row_of(table, "flat").over_floor
    assert over is not None
    assert over.value == pytest.approx(0.2)


def test_a_drop_is_a_loss_whatever_the_direction() -> None:
    run = make_conditions_run("redeem", GRID, how="mean")
    run.record.higher_is_better = False
    assert only_table([run]).rows[0].drop == pytest.approx(-0.5)


def test_an_incomplete_grid_is_never_averaged() -> None:
    whole = [make_conditions_run("redeem", GRID, how="mean", train_seed=seed) for seed in range(2)]
    other = make_conditions_run("map", GRID, how="mean")
    for run in (whole[1], other):
        del run.record.results[2]
    table = only_table([*whole, other])
    redeem, lost = row_of(table, "redeem"), row_of(table, "map")
    assert (redeem.seeds, redeem.missing_seeds) == ([0], [1])
    assert redeem.score == pytest.approx(0.7)
    assert "incomplete grid, failed: no result under both_0.5" in badges(redeem)
    assert (lost.score, lost.rank, lost.per_condition, lost.drop) == (None, None, {}, None)
    assert "incomplete grid, failed: no result under both_0.5" in badges(lost)
    assert table.rows[-1] is lost


def test_predictions_must_be_about_the_conditions_of_the_record() -> None:
    run = make_conditions_run("redeem", GRID, how="mean")
    stale = replace(run, scores=make_conditions_run("redeem", {"both_0": 0.9, "both_1": 0.4}, how="mean").scores)
    table = only_table([stale])
    assert table.rows[0].rank is None
    assert "not about the test conditions of its record" in table.notes[0]


def test_a_failed_run_stands_in_the_table_of_its_conditions() -> None:
    failed = FakeRun(make_record("broken", status="failed", protocol="patterns"))
    failed.record.protocol |= {"conditions": ["text", "image"], "headline": "pooled"}
    table = only_table([make_conditions_run("redeem", {"text": 0.8, "image": 0.9}, protocol="patterns"), failed])
    assert [row.name for row in table.rows] == ["redeem", "broken"]


def test_an_undefined_condition_has_no_mean() -> None:
    run = make_conditions_run("redeem", GRID, how="mean")
    run.record.results[0].metrics["accuracy"] = float("nan")
    run.record.results[2].metrics["accuracy"] = float("nan")
    (row,) = only_table([run]).rows
    assert row.score is None
    assert badges(row) == ["accuracy undefined in 1"]


def test_reports_leave_torch_alone() -> None:
    code = (
        "import sys\nimport harness.reports.build, harness.reports.render, harness.reports.statistics\n"
        "heavy = {'torch', 'transformers', 'mlflow', 'pandas', 'scipy', 'jinja2', 'matplotlib', 'sklearn'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "from harness.testing.records import make_run\n"
        "runs = [make_run('redeem', 0.8), make_run('map', 0.7)]\n"
        "board = harness.reports.leaderboard.Leaderboard.build(runs)\n"
        "print(harness.reports.render.to_terminal(board))\n"
        "harness.reports.html.to_html(board)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "redeem" in done.stdout


def test_the_area_under_the_curve_stands_beside_the_mean() -> None:
    table = only_table([make_conditions_run("redeem", GRID, how="mean")])
    assert table.rates == [0.0, 0.5, 1.0]
    (row,) = table.rows
    assert row.score == pytest.approx((0.9 + 0.8 + 0.4) / 3)
    assert row.area == pytest.approx((0.85 + 0.6) / 2)
    assert row.condition_metrics["both_0.5"] == pytest.approx({"accuracy": 0.8})
    patterns = only_table([make_conditions_run("redeem", {"text": 0.8, "image": 0.9})])
    assert (patterns.rates, patterns.rows[0].area) == ([], None)


@pytest.mark.parametrize(
    ("names", "rates"),
    [
        (["both_0", "both_0.1", "both_1"], [0.0, 0.1, 1.0]),
        (["shared_0.5", "both_0.7"], []),
        (["both_0.7", "both_0.1"], []),
        (["text", "image"], []),
        (["both_0.7"], []),
    ],
)
def test_a_grid_is_one_family_at_rising_rates(names: list[str], rates: list[float]) -> None:
    assert grid_rates(names) == rates


def test_every_two_ranked_rows_are_tested_once() -> None:
    runs = [make_run("best", 0.90, count=500), make_run("second", 0.89, count=500), make_run("worst", 0.50, count=500)]
    table = only_table([*runs, make_run("complete", 0.95, count=500, oracle=True)])
    names = [(table.rows[pair.first].name, table.rows[pair.second].name) for pair in table.pairs]
    assert names == [("best", "second"), ("best", "worst"), ("second", "worst")]
    assert [row.ties for row in table.rows] == ["", "a", "a", "b"]
    assert [row.p_best for row in table.rows] == [None, None, table.pairs[0].p_holm, table.pairs[1].p_holm]
    pair = table.pairs[1]
    assert pair.difference.value == pytest.approx(0.4)
    assert pair.p_holm >= pair.difference.p
    assert pair.detectable == pytest.approx(0.7147 * (pair.difference.high - pair.difference.low), rel=1e-3)


def test_runs_in_another_order_give_the_same_report() -> None:
    runs = [
        make_run(name, value + seed / 50, train_seed=seed)
        for name, value in (("redeem", 0.7), ("map", 0.68))
        for seed in range(3)
    ]
    assert Leaderboard.build(runs) == Leaderboard.build(runs[::-1])


def test_supervision_is_a_badge_where_training_sees_everything() -> None:
    assert "complete supervision" in badges(only_table([make_run("mmin", 0.8, supervision="complete")]).rows[0])
