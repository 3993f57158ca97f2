"""Rows of Parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from fedllm.data.columns import ColumnMap, Row
from fedllm.data.text_files import opened
from fedllm.data.values import NOT_UTF8, Unreadable
from fedllm.errors import DataError
from fedllm.extras import remedy_of

if TYPE_CHECKING:
    import pyarrow

_BATCH_ROWS = 4096


def parquet_rows(path: Path, columns: ColumnMap) -> Iterator[Row]:
    """Yield the rows of one Parquet file; of its columns only those of the map are read.

    A value that cannot be read is an `Unreadable` in its row.

    Raises
    ------
    DataError
        If the package pyarrow is missing, the file is damaged, or it lacks a column.
    """
    _need_pyarrow(path)
    number = 0
    with opened(path) as stream:
        try:
            for batch in _batches(stream, path, columns):
                fields = {name: _values(batch.column(name)) for name in batch.schema.names}
                for index in range(batch.num_rows):
                    number += 1
                    yield Row(number, None, {name: fields[name][index] for name in fields})
        except DataError:
            raise
        except MemoryError:
            raise DataError(
                f"{path} cannot be read: not enough memory after row {number}",
                "write the file again with smaller row groups",
            ) from None
        except Exception:
            # Arrow raises many classes for damage, and its words may quote the content.
            raise DataError(
                f"{path} is not a whole Parquet file (read up to row {number})",
                "write or copy the file again",
            ) from None


def _batches(stream: BinaryIO, path: Path, columns: ColumnMap) -> Iterator[pyarrow.RecordBatch]:
    from pyarrow import parquet

    with parquet.ParquetFile(stream) as table:
        present = _names(table, path)
        columns.check(present, str(path))
        wanted = [name for name in columns.names if name in present]
        for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=wanted):
            # A name also selects what is nested below it, such as a column 'text.html'.
            yield batch.select(wanted)


def parquet_columns(path: Path) -> list[str]:
    """Return the names of all columns of a file that `parquet_rows` can read; errors as there."""
    _need_pyarrow(path)
    from pyarrow import parquet

    with opened(path) as stream:
        try:
            with parquet.ParquetFile(stream) as table:
                return _names(table, path)
        except DataError:
            raise
        except Exception:
            raise DataError(
                f"{path} is not a whole Parquet file", "write or copy the file again"
            ) from None


def parquet_count(path: Path) -> int:
    """Return how many rows a file says that it has; errors as `parquet_rows`."""
    _need_pyarrow(path)
    from pyarrow import parquet

    with opened(path) as stream, parquet.ParquetFile(stream) as table:
        return int(table.metadata.num_rows)


def _need_pyarrow(path: Path) -> None:
    try:
        import pyarrow.parquet
    except ImportError:
        raise DataError(
            f"{path}: reading Parquet needs the package pyarrow", remedy_of("parquet")
        ) from None
    del pyarrow


def _names(table: pyarrow.parquet.ParquetFile, path: Path) -> list[str]:
    try:
        return list(table.schema_arrow.names)
    except UnicodeDecodeError:
        raise DataError(
            f"{path}: the name of a column is not UTF-8", "rename it and write the file again"
        ) from None


def _values(column: pyarrow.Array) -> list[object]:
    try:
        return list(column.to_pylist())
    except Exception:
        return [_value(column, index) for index in range(len(column))]


def _value(column: pyarrow.Array, index: int) -> object:
    try:
        return column[index].as_py()
    except UnicodeDecodeError:
        return NOT_UTF8
    except Exception:
        return Unreadable(f"is of type {column.type}, not text, and out of Python's range")
