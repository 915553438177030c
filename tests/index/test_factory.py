import pytest
from pydantic import ValidationError

from index.codes import code_bytes
from index.errors import VectorIndexError
from index.factory import bytes_needed, plan_factory
from index.settings import IndexSettings

KINDS = ["sq8", "sq4", "rabitq", "ivf_flat", "ivf_sq8", "ivf_sq4", "ivf_rabitq", "ivf_rabitq2", "ivf_pq"]


@pytest.mark.parametrize("width", [8, 100, 384])
@pytest.mark.parametrize(
    "codes", ["Flat", "SQ4", "SQ6", "SQ8", "SQfp16", "SQbf16", "PQ4", "PQ4x4", "RaBitQ", "RaBitQ2", "RaBitQ5"]
)
def test_code_bytes_are_faisss_own(codes, width):
    faiss = pytest.importorskip("faiss")
    lists = faiss.downcast_index(faiss.index_factory(width, f"IVF1,{codes}", faiss.METRIC_INNER_PRODUCT))
    assert code_bytes(codes, width) == lists.code_size


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "ivf_flat"])
@pytest.mark.parametrize(("rows", "dims"), [(10**6, 1024), (10**8, 20_480), (10**7, 4096)])
def test_an_index_takes_a_sixteenth_of_the_float16_rows_at_most(kind, rows, dims):
    plan = plan_factory(IndexSettings(kind=kind), rows, dims)
    assert plan.disk_bytes <= rows * dims * 2 / 16
    assert plan.build_bytes <= 4 * 2**30


@pytest.mark.parametrize("kind", KINDS)
def test_given_memory_is_kept_to_or_refused_with_what_it_takes(kind):
    plan = plan_factory(IndexSettings(kind=kind, memory=300 * 10**6), 10**6, 64)
    assert plan.disk_bytes <= 300 * 10**6
    with pytest.raises(VectorIndexError, match="Give "):
        plan_factory(IndexSettings(kind=kind, memory=10**6), 10**6, 64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "dims"), [(0, 5), (1, 1), (30, 3), (500, 100_000), (10**5, 768)])
def test_every_kind_has_a_plan_for_data_of_any_size(kind, rows, dims):
    plan = plan_factory(IndexSettings(kind=kind), rows, dims)
    assert plan.factory is not None
    assert plan.cells <= max(1, rows)
    assert plan.sample <= rows


def test_more_memory_makes_wider_codes():
    small, large = (plan_factory(IndexSettings(kind="ivf_rabitq2", memory=m), 10**6, 1024) for m in (10**8, 3 * 10**8))
    assert small.row_bytes < large.row_bytes


def test_auto_is_flat_where_that_fits_and_codes_where_it_does_not():
    assert plan_factory(IndexSettings(kind="auto"), 1000, 100).kind == "flat"
    assert plan_factory(IndexSettings(kind="auto"), 10**7, 1024).kind == "ivf_rabitq2"


def test_auto_with_a_recall_of_one_never_approximates():
    assert plan_factory(IndexSettings(kind="auto", recall=1), 10**7, 1024).kind == "exact"
    assert plan_factory(IndexSettings(kind="auto", recall=1), 100, 10).kind == "flat"


def test_wide_rows_are_turned_without_a_matrix_in_as_many_columns_as_fit():
    plan = plan_factory(IndexSettings(kind="ivf_rabitq"), 10**5, 21_504)
    assert plan.turned
    assert plan.factory == f"IVF{plan.cells},RaBitQ"
    assert 0.9 * 21_504 < plan.reduced <= 21_504
    assert plan.build_bytes < 2 * 2**30
    assert not plan_factory(IndexSettings(kind="ivf_rabitq"), 10**5, 4096).turned


def test_few_wide_rows_may_take_a_bit_a_column_and_many_may_not():
    few, many = (plan_factory(IndexSettings(kind="ivf_rabitq"), rows, 86_016) for rows in (10**4, 10**8))
    assert few.row_bytes > 0.8 * 86_016 / 8
    assert many.row_bytes <= 640


def test_wide_rows_of_kinds_without_rotation_are_added_up_before_anything_is_trained():
    assert plan_factory(IndexSettings(kind="ivf_sq8"), 10**6, 86_016).reduced == 4096
    assert plan_factory(IndexSettings(kind="ivf_pq"), 10**6, 86_016).reduced == 4096
    assert plan_factory(IndexSettings(kind="ivf_rabitq2", reduce=512), 10**6, 86_016).reduced == 512
    assert plan_factory(IndexSettings(kind="ivf_rabitq2"), 10**6, 1024).reduced == 1024


def test_auto_takes_one_bit_of_wide_rows_and_two_of_others():
    assert plan_factory(IndexSettings(kind="auto"), 10**6, 21_504).kind == "ivf_rabitq"
    assert plan_factory(IndexSettings(kind="auto", reduce=1024), 10**6, 21_504).kind == "ivf_rabitq2"


def test_a_factory_of_ones_own_is_used_as_it_stands_and_gets_one_list_where_it_names_none():
    plan = plan_factory(IndexSettings(kind="factory", factory="PCAR64,IVF128,SQ4"), 10**5, 512)
    assert (plan.factory, plan.cells, plan.row_bytes) == ("PCAR64,IVF128,SQ4", 128, 40)
    assert plan_factory(IndexSettings(kind="factory", factory="RaBitQ"), 10**5, 512).factory == "IVF1,RaBitQ"


@pytest.mark.parametrize(
    "factory",
    ["HNSW32", "IVF16_HNSW32,Flat", "IVF16,PQ8x4fs", "IVF16,Flat,RFlat", "IVF0,Flat", "L2norm,SQ8", "", "SQ5"],
)
def test_factories_that_cannot_be_merged_on_disk_are_refused_with_those_that_can(factory):
    with pytest.raises(ValidationError, match="Only inverted lists can be built in parts"):
        IndexSettings(kind="factory", factory=factory)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("PCAR64,IVF4,SQ8", "PCAR64 makes 64 columns of 32; ask for 32 or fewer"),
        ("PQ5", "32 columns can't be cut into equal parts"),
        ("OPQ5_16,PQ4", "16 columns can't be cut into equal parts"),
    ],
)
def test_factories_that_do_not_fit_the_columns_are_refused(factory, message):
    with pytest.raises(VectorIndexError, match=message):
        plan_factory(IndexSettings(kind="factory", factory=factory), 1000, 32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "factory"}, "set factory, such as"),
        ({"kind": "flat", "factory": "SQ8"}, "set kind: factory, or leave it out"),
        ({"kind": "ivf_sq8", "recall": 1}, "can't promise a recall of 1"),
        ({"kind": "ivf_sq8", "device": "gpu"}, "for a GPU set kind: flat"),
        ({"kind": "auto", "device": "gpu"}, "for a GPU set kind: flat"),
        ({"kind": "ivf"}, "Input should be"),
        ({"nprobe": 3}, "Extra inputs"),
        ({"recall": 0}, "greater than 0"),
        ({"kind": "flat", "probes": 3}, "probes is 3 and kind is flat"),
        ({"kind": "exact", "candidates": 3}, "compares every row: leave it out"),
        ({"kind": "sq8", "probes": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_contradict_one_another_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        IndexSettings(**settings)


def test_exact_and_flat_cost_what_they_did():
    assert bytes_needed(IndexSettings(kind="exact"), 10, 6) == 0
    assert bytes_needed(IndexSettings(kind="flat"), 10, 6) == 240


def test_a_flat_index_beyond_the_memory_given_is_refused():
    with pytest.raises(VectorIndexError, match=r"a flat index of 10 rows and 6 columns takes 240\. Give as much"):
        plan_factory(IndexSettings(kind="flat", memory=239), 10, 6)


def test_a_plan_is_said_in_words():
    assert plan_factory(IndexSettings(), 10, 5).summary == "exact: every row is compared"
    words = plan_factory(IndexSettings(kind="ivf_sq8"), 10**6, 86_016).summary
    assert words.startswith("ivf_sq8: rows added up to 4,096 columns, then FAISS PCAR")
    assert words.endswith("bytes per row; candidates are scored from the stored rows")
    turned = plan_factory(IndexSettings(kind="ivf_rabitq2"), 10**6, 86_016).summary
    assert turned.startswith("ivf_rabitq2: rows rotated in 8,400 of 86,016 columns, then FAISS IVF249,RaBitQ2")
    narrow = plan_factory(IndexSettings(kind="ivf_rabitq2"), 10**6, 1024).summary
    assert narrow.startswith("ivf_rabitq2: FAISS PCAR384,IVF1024,RaBitQ2, 124 bytes per row")
