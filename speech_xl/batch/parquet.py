"""The results as one Parquet table, for pandas, DuckDB, Spark and the like: a row for each line of results.jsonl.

All kinds of lines share its columns; what a kind does not have is null. pyarrow is imported here and nowhere else, and
only when a table is asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from speech_xl.batch.results import Line
from speech_xl.errors import MissingPackageError
from speech_xl.whole_file import whole_file

TABLE = "results.parquet"
ROWS_AT_ONCE = 1000  # a row group; a corpus need not fit in RAM
# Types in pyarrow's names; a list stands for a list of what is in it, a dictionary for a struct.
COLUMNS: dict[str, Any] = {
    "recording": "string",
    "kind": "string",
    "question": "string",
    "answer": "string",
    "finish_reason": "string",
    "evidence": [{"start": "double", "end": "double", "weight": "double"}],
    "source": "string",
    "segments": [{"start": "double", "end": "double", "text": "string"}],
    "file": "string",
    "seconds": "double",
    "seconds_heard": "double",
    "sha256": "string",
    "size": "int64",
    "modified": "int64",
    "memory": {"intervals": "int64", "ratio": "string", "slots": "int64", "speech_tokens": "int64", "bytes": "int64"},
    "reason": "string",
    "warnings": ["string"],
}


def check_parquet() -> None:
    """MissingPackageError where no table can be written, before any work is done for one."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingPackageError.of("--parquet", error.name, "parquet") from error


def write_parquet(lines: Iterable[Line], path: Path) -> None:
    """Whole or not at all; OutputError where it cannot be written."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    def kind_of(what: Any) -> pyarrow.DataType:
        if isinstance(what, dict):
            return pyarrow.struct({name: kind_of(part) for name, part in what.items()})
        return pyarrow.list_(kind_of(what[0])) if isinstance(what, list) else pyarrow.type_for_alias(what)

    schema = pyarrow.schema({name: kind_of(what) for name, what in COLUMNS.items()})
    lines = iter(lines)
    with whole_file(path) as temporary, ParquetWriter(temporary, schema) as writer:
        while rows := list(itertools.islice(lines, ROWS_AT_ONCE)):
            writer.write_table(pyarrow.Table.from_pylist([_row(line) for line in rows], schema))


def _row(line: Line) -> dict[str, Any]:
    """A line as it can be stored: the name of a file may hold bytes that are no text."""
    texts = ("recording", "file", "reason")
    return line | {name: line[name].encode("utf-8", "backslashreplace").decode() for name in texts if name in line}
