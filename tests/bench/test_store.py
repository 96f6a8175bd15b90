import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peft_reprogram.bench import ResultStore, read_rows


def row(seed, value=0.5):
    return {"cell": {"strategy": "lora", "seed": seed}, "value": value}


def test_what_was_appended_is_found_again(tmp_path):
    store = ResultStore(tmp_path / "new" / "results.jsonl")
    store.append(row(0))
    store.append(row(1))
    again = ResultStore(store.path)
    assert list(again) == [row(0), row(1)]
    assert again.get({"seed": 1, "strategy": "lora"}) == row(1)
    assert again.get({"seed": 2, "strategy": "lora"}) is None


@given(kept=st.integers(0, 200))
def test_a_line_cut_off_anywhere_costs_that_row_alone(tmp_path_factory, kept):
    path = tmp_path_factory.mktemp("store") / "results.jsonl"
    store = ResultStore(path)
    store.append(row(0))
    whole = path.stat().st_size
    store.append(row(1))
    path.write_bytes(path.read_bytes()[: whole + kept])
    cut = ResultStore(path)
    complete = whole + kept >= 2 * whole - 1
    assert len(cut) == 1 + complete
    cut.append(row(2))
    assert [r["cell"]["seed"] for r in read_rows([path])] == ([0, 1, 2] if complete else [0, 2])


def test_several_stores_make_one_table_and_the_last_row_of_a_cell_counts(tmp_path):
    first, second = ResultStore(tmp_path / "a.jsonl"), ResultStore(tmp_path / "b.jsonl")
    first.append(row(0, 0.1))
    second.append(row(1))
    second.append(row(0, 0.2))
    assert read_rows([first.path, second.path]) == [row(0, 0.2), row(1)]


def test_rows_of_other_stores_count_but_stay_where_they_are(tmp_path):
    ResultStore(tmp_path / "other.jsonl").append(row(0))
    store = ResultStore(tmp_path / "own.jsonl", others=[tmp_path / "other.jsonl"])
    store.append(row(1))
    assert store.get(row(0)["cell"]) == row(0)
    assert read_rows([tmp_path / "own.jsonl"]) == [row(1)]


def test_a_process_that_only_follows_writes_nothing(tmp_path):
    store = ResultStore(tmp_path / "results.jsonl")
    store.append(row(0), on_disk=False)
    assert store.get(row(0)["cell"]) == row(0)
    assert not store.path.exists()


def test_bad_stores_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no results store .*none\.jsonl"):
        read_rows([tmp_path / "none.jsonl"])
    (tmp_path / "other.jsonl").write_text(json.dumps({"loss": 1}) + "\n")
    with pytest.raises(ValueError, match=r"line 1 of .*other\.jsonl is no result: it has no 'cell'"):
        read_rows([tmp_path / "other.jsonl"])
    with pytest.raises(ValueError, match="Out of range float"):
        ResultStore(tmp_path / "nan.jsonl").append(row(0, float("nan")))
    assert not (tmp_path / "nan.jsonl").exists() or read_rows([tmp_path / "nan.jsonl"]) == []


def test_rows_may_have_another_key(tmp_path):
    store = ResultStore(tmp_path / "trials.jsonl", key="trial")
    store.append({"trial": 1, "value": 2})
    assert ResultStore(store.path, key="trial").get(1) == {"trial": 1, "value": 2}
