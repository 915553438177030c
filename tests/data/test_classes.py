"""Class names of a data set against those of the model."""

import datasets
import pyarrow.parquet as pq
import pytest

from influence.data.classes import check_class_order
from influence.data.dataset import DataSettings, open_rows
from influence.errors import DataError

MODEL = {"negative": 0, "positive": 1}


def rows_of(folder, names, form):
    """A data set of two classes with names, as `datasets` writes it."""
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    whole = datasets.Dataset.from_dict({"text": ["good", "bad"], "label": [0, 1]}, features=features)
    path = folder / ("rows" if form == "saved" else "rows.parquet")
    if form == "saved":
        whole.save_to_disk(str(path))
    else:
        whole.to_parquet(str(path))
    return open_rows(DataSettings(path=str(path)))


@pytest.mark.parametrize("form", ["saved", "parquet"])
def test_classes_in_another_order_than_the_models_are_refused_with_both_orders(tmp_path, form):
    rows = rows_of(tmp_path, ["positive", "negative"], form)
    assert rows.classes == ("positive", "negative")
    said = r"classes 0 'positive', 1 'negative', and the model's label2id has 0 'negative', 1 'positive'"
    with pytest.raises(DataError, match=said):
        check_class_order(rows.classes, MODEL, rows.place)


@pytest.mark.parametrize("form", ["saved", "parquet"])
def test_classes_in_the_models_order_pass_in_whatever_case(tmp_path, form):
    rows = rows_of(tmp_path, ["Negative", "POSITIVE"], form)
    check_class_order(rows.classes, MODEL, rows.place)
    check_class_order(rows.classes, {"LABEL_0": 0, "LABEL_1": 1}, rows.place)
    check_class_order(rows.classes, None, rows.place)


def test_numbers_without_names_are_the_models(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "good", "label": 1}\n')
    rows = open_rows(DataSettings(path=str(path)))
    assert rows.classes == ()
    check_class_order(rows.classes, MODEL, rows.place)


def test_classes_of_no_common_name_are_matched_by_number_and_said_so(caplog):
    check_class_order(("bad", "good"), MODEL, "rows")
    assert "rows names its classes 0 'bad', 1 'good', the model 0 'negative', 1 'positive'" in caplog.text


def test_files_that_name_their_classes_in_two_orders_are_refused(tmp_path):
    for number, names in enumerate((["a", "b"], ["b", "a"])):
        (tmp_path / str(number)).mkdir()
        rows_of(tmp_path / str(number), names, "parquet")
        table = pq.read_table(tmp_path / str(number) / "rows.parquet")
        pq.write_table(table, tmp_path / f"{number}.parquet")
    with pytest.raises(DataError, match=r"1\.parquet names its classes \['b', 'a'\] and .*0\.parquet \['a', 'b'\]"):
        open_rows(DataSettings(path=str(tmp_path / "*.parquet")))
