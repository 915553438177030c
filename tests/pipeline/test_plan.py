"""The plan is a pure function: shards and groups cover everything once, within their bounds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.settings import IndexSettings
from influence.axes import ModuleColumns
from influence.capture import cut as plan
from influence.capture.cut import estimate, group_shards, most_shards, plan_shards, rows_per_shard
from influence.errors import DataError
from influence.store.manifest import StoreSettings


def modules(*widths: int) -> tuple[ModuleColumns, ...]:
    found, start = [], 0
    for number, width in enumerate(widths):
        sizes = {"outputs": 99, "inputs": 99, "q": 1, "p": width}
        found.append(ModuleColumns(name=f"layer{number}", **sizes, start=start, stop=start + width))
        start += width
    return tuple(found)


@given(rows=st.integers(1, 5000), per_shard=st.integers(1, 700))
def test_shards_hold_every_row_once_in_order_and_never_grow(rows, per_shard):
    shards = plan_shards(rows, per_shard)
    assert [row for span in shards for row in range(span.start, span.stop)] == list(range(rows))
    assert [span.shard for span in shards] == list(range(len(shards)))
    sizes = [span.rows for span in shards]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] <= per_shard


def test_a_shard_holds_a_quarter_of_what_is_left_between_64_rows_and_as_many_as_set():
    assert [span.rows for span in plan_shards(1000, 200)] == [200, 200, 150, 113, 85, 64, 64, 64, 60]
    assert [span.rows for span in plan_shards(100, 40)] == [40, 40, 20]


def test_no_rows_make_no_plan():
    with pytest.raises(DataError, match="no rows"):
        plan_shards(0, 10)


@given(rows=st.integers(1, 10**8), dims=st.integers(1, 10**7))
def test_shards_are_about_256_megabytes_unless_the_data_is_small(rows, dims):
    found = rows_per_shard(rows, 2 * dims, StoreSettings(codec="float16"))
    assert 64 <= found <= 65_536
    assert found == 64 or found * dims * 2 <= 256 * 2**20
    if found > 256:
        assert -(-rows // found) <= 32 or found in (65_536, 256 * 2**20 // (2 * dims))


def test_a_small_data_set_still_makes_work_for_several_workers():
    assert len(plan_shards(5000, rows_per_shard(5000, 2 * 7168, StoreSettings(codec="float16")))) > 8


def test_a_set_number_of_rows_is_kept():
    assert rows_per_shard(10**6, 10**6, StoreSettings(rows_per_shard=3)) == 3


@given(rows=st.integers(1, 20_000), dims=st.integers(1, 10**7), per_shard=st.none() | st.integers(20, 700))
def test_no_width_makes_more_shards_than_were_reckoned_before_it_was_known(rows, dims, per_shard):
    settings = StoreSettings(rows_per_shard=per_shard)
    shards = plan_shards(rows, rows_per_shard(rows, dims, settings))
    assert len(shards) <= most_shards(rows, settings)
    assert per_shard is None or len(shards) == most_shards(rows, settings)


@given(shards=st.integers(1, 400), width=st.integers(1, 9000))
def test_groups_hold_every_shard_once_within_their_bounds(shards, width):
    planned, columns = plan_shards(shards, 1), modules(width)
    groups = group_shards(planned, columns)
    assert tuple(span for group in groups for span in group) == planned
    assert len(groups) <= plan.GROUPS
    assert len(groups) == 1 or len(groups) * 8 * width * width <= plan.PARTIAL_BYTES


def test_an_estimate_counts_the_bytes_of_every_file():
    needs = estimate(1000, modules(4, 6), 200, curvature="fisher", index=IndexSettings(kind="flat"), model_bytes=7)
    assert (needs.dims, needs.shards, needs.rows_per_shard) == (10, 9, 200)
    assert needs.disk_rows == 1000 * (20 + 4)
    assert needs.disk_index == needs.memory_index == 1000 * 40
    assert needs.disk_curvature == 9 * 8 * (16 + 36) + 4 * (16 + 36)
    assert needs.memory_model == 7


def test_memory_is_that_of_the_largest_shard_and_not_of_the_setting():
    needs = estimate(1000, modules(4, 6), 500, curvature="identity", index=IndexSettings())
    assert needs.rows_per_shard == 250
    assert needs.memory_capture == 2 * 250 * (20 + 4)


def test_a_recipe_without_curvature_and_index_needs_neither():
    needs = estimate(1000, modules(4, 6), 50, curvature="identity", index=IndexSettings())
    assert (needs.disk_curvature, needs.memory_curvature, needs.disk_index) == (0, 0, 0)
    assert needs.disk == needs.disk_rows
