"""Tables and numbers in documents come from the results, and a stale one is noticed."""

import json
import shutil
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import tables


def test_documents_are_up_to_date():
    """`python scripts/tables.py` mends a failure."""
    assert not tables.stale(fill=False), "run `python scripts/tables.py` and commit"


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of what the script reads and writes."""
    for name in ("reports", "docs", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "README.md", tmp_path)
    for name, path in (("ROOT", tmp_path), ("REPORTS", tmp_path / "reports"), ("DOCS", tmp_path / "docs")):
        monkeypatch.setattr(tables, name, path)
    for cached in (tables.groups, tables.summarised):
        cached.cache_clear()
    yield tmp_path
    for cached in (tables.groups, tables.summarised):
        cached.cache_clear()


def test_a_changed_result_makes_every_use_stale(copy):
    path = copy / "reports/runs/glance-augment-0/metrics.jsonl"
    *others, last = path.read_text().splitlines()
    record = json.loads(last)
    assert record["split"] == "test"
    path.write_text("\n".join([*others, json.dumps(record | {"accuracy": 0.9})]) + "\n")
    stale = {str(path.relative_to(copy)) for path in tables.stale(fill=False)}
    documents = {"README.md", "docs/results.md", "docs/ladder.md", "reports/ladder_5000.json", "configs/augment.py"}
    assert stale == documents | {"reports/figures/ladder.svg", "reports/figures/waterfall_5000.svg"}


def test_an_edited_number_is_stale(copy):
    path = copy / "docs/benchmarks.md"
    path.write_text(path.read_text().replace("| 596 |", "| 696 |", 1))
    assert list(tables.stale(fill=False)) == [path]


def test_a_table_needs_an_end(copy):
    with pytest.raises(SystemExit, match="has no line"):
        tables.filled("<!-- table ladder -->\n| a |", {"ladder": list})


def test_means_and_intervals():
    row = {"runs": [{"accuracy": value} for value in (0.5, 0.52, 0.57)]}
    # t(2) at .975 is 4.3027; the standard deviation of the three is .036056.
    assert tables.accuracy(row) == ".530 [.440, .620], n = 3"
    assert tables.accuracy({"runs": row["runs"][:1]}) == ".500, n = 1"
    assert tables.accuracy(None) == ""


def test_the_figure_shows_every_level_of_both():
    rows = tables.summarised(tables.QUICK)
    figure = tables.ladder_figures.beside_reference(rows)
    left, right = ([text.get_text().strip() for text in axes.texts] for axes in figure.axes)
    assert {"10.0", "78.8", "80.8", "86.3", "no number", "basic", "augment"} <= set(left)
    assert {f"{100 * row['mean']['accuracy']:.1f}" for row in rows} <= set(right)
    assert "5,000 images, 10 epochs, n = 5" in right
