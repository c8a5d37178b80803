"""HPACK's tables of a decoder, compared with those of hpack."""

import tracemalloc
from collections.abc import Sequence

import pytest
from hpack.exceptions import InvalidTableIndexError
from hpack.table import HeaderTable
from hypothesis import given
from hypothesis import strategies as st

from serving.transports.http.http2.hpack_table import DEFAULT_TABLE_BYTES, FieldTable

STATIC = len(HeaderTable.STATIC_TABLE)

names = st.binary(max_size=40).map(lambda name: name.replace(b"\0", b"-"))
values = st.binary(max_size=40) | st.sampled_from([b"x" * 1000, b"x" * 4064, b"x" * 5000])
steps = st.tuples(names, values) | st.integers(0, DEFAULT_TABLE_BYTES)  # a field to add, or a new size


def _fields(table: FieldTable) -> list[tuple[bytes, bytes]]:
    """Every field that can be referred to."""
    fields: list[tuple[bytes, bytes]] = []
    while True:
        try:
            fields.append(table.field(len(fields) + 1))
        except InvalidTableIndexError:
            return fields


@given(st.lists(steps, max_size=300))
def test_fields_are_those_of_hpack(steps: Sequence[tuple[bytes, bytes] | int]) -> None:
    """After any fields, of any size, and changes of the size."""
    table, other = FieldTable(), HeaderTable()
    for step in steps:
        if isinstance(step, int):
            table.resize(step)
            other.maxsize = step
        else:
            table.add(*step)
            other.add(*step)
    assert _fields(table) == [*HeaderTable.STATIC_TABLE, *other.dynamic_entries]


@pytest.mark.parametrize("index", [-1, 0, STATIC + 2, 2**28])
def test_a_field_that_does_not_exist_is_an_error(index: int) -> None:
    """The table has one field beyond the static ones."""
    table = FieldTable()
    table.add(b"a", b"b")
    assert table.field(STATIC + 1) == (b"a", b"b")
    with pytest.raises(InvalidTableIndexError, match=f"no field {index}"):
        table.field(index)


def test_a_full_table_takes_little_memory() -> None:
    """Thousands of clients can fill theirs, with the smallest fields."""
    tracemalloc.start()
    table = FieldTable()
    for number in range(1000):
        table.add(b"%d" % number, b"v")
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < 2 * DEFAULT_TABLE_BYTES
