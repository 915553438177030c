"""Records of JSON Lines, CSV, TSV and Parquet files, one at a time, each with the place it came from.

These readers stand in front of `datasets`, which keeps what they give in its memory-mapped cache. Its own loaders infer
types from values: a JSON string that looks like a date becomes a timestamp, the CSV cell "NA" becomes a null, a short
CSV row is filled up. For a corpus that is corruption, so nothing is inferred here, and complaints name file and line.
"""

import csv
import json
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import closing, suppress
from shlex import quote
from typing import Any, Literal

from index.strict_json import parse_json
from influence.errors import DataError

FileFormat = Literal["jsonl", "csv", "tsv", "parquet"]

DELIMITERS: dict[FileFormat, str] = {"csv": ",", "tsv": "\t"}
"""What separates the cells of a row, in the formats that have cells."""

LARGEST_CELL = 2**31 - 1
LONGEST_LINE = 1 << 28
"""Bytes of a line: a row of 256 MiB fits no model, and a device gives zeros without end."""
BOM = b"\xef\xbb\xbf"
OTHER_MARKS = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
"""The byte order marks of other encodings than UTF-8."""
SIGNATURES = (
    (b"\x1f\x8b", "compressed by gzip", "unpack it (gunzip)"),
    (b"BZh", "compressed by bzip2", "unpack it (bunzip2)"),
    (b"\xfd7zXZ\x00", "compressed by xz", "unpack it (unxz)"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "unpack it (unzstd)"),
    (b"PK\x03\x04", "a zip archive or an Excel workbook", "unpack the archive, or save the sheet as CSV UTF-8"),
    (b"\xd0\xcf\x11\xe0", "an old Office document (.xls)", "save the sheet as CSV UTF-8"),
    (b"PAR1", "Parquet", "name it …parquet, or set data.format: parquet"),
    (b"ARROW1", "an Arrow file", "write it as Parquet"),
    (b"\x89HDF", "HDF5", "write it as Parquet"),
    (b"SQLite format 3\0", "an SQLite database", "write the table as CSV or Parquet"),
    (b"%PDF-", "a PDF", "take the text out of it"),
    (b"version https://git-lfs", "a pointer of Git LFS, without the data", "fetch them (git lfs pull)"),
)
"""How files begin that are no text of rows, what they are, and what to do."""
PARQUET_BATCH = 512

Placed = tuple[str, dict[str, Any]]
"""Where a record was found (file and line, or file and row), and the record."""


def columns_of(file: str, file_format: FileFormat, renamed: Collection[str] = ()) -> tuple[str, ...]:
    """Return the columns of a file: the keys of its first JSON object, its CSV header, or its Parquet schema.

    Args:
        file: Its path.
        file_format: Its format.
        renamed: Columns that a later JSON object may have where the first has not: looked for until they are found.

    Raises:
        DataError: The file is empty or can't be read.
    """
    if file_format == "parquet":
        names = _parquet(file).schema_arrow.names
        _check_once(names, file, "the schema")
        return tuple(names)
    if file_format in DELIMITERS:
        with closing(csv_rows(file, _lines(file), DELIMITERS[file_format])) as rows:
            for where, header in rows:
                _check_delimiter(header, file_format, where)
                return tuple(header)
    else:
        columns: dict[str, None] = {}
        with closing(_jsonl(file)) as records:
            for _, record in records:
                later = {name: None for name in record if name in renamed} if columns else dict.fromkeys(record)
                columns |= later
                if columns.keys() >= set(renamed):
                    break
        if columns:
            return tuple(columns)
    raise DataError(f"{file} is empty: there is no row in it. Expected at least one.")


def records(file: str, file_format: FileFormat, columns: tuple[str, ...], *, strict: bool = False) -> Iterator[Placed]:
    """Yield a file's records in order.

    Args:
        file: Its path.
        file_format: Its format.
        columns: The columns a Parquet reader need not skip.
        strict: Refuse a JSON object that means two things (`index.strict_json`). Rows of a corpus may: a training read
            the last of two equal keys, as is done here.

    Raises:
        DataError: A line is not UTF-8, not JSON, or has not the header's number of cells; or this is no Parquet file.
    """
    if file_format == "parquet":
        return _parquet_records(file, columns)
    return _csv_records(file, DELIMITERS[file_format]) if file_format in DELIMITERS else _jsonl(file, strict)


def raw_lines(file: str) -> Iterator[tuple[bytes, str]]:
    """Yield every line of a file as its bytes and as text; without a byte order mark, which only the bytes keep.

    Raises:
        DataError: The file can't be read, or isn't UTF-8.
    """
    try:
        with open(file, "rb") as stream:
            for number, line in enumerate(iter(lambda: stream.readline(LONGEST_LINE + 1), b""), start=1):
                if number == 1:
                    _check_signature(line, file, "lines of text")
                    _check_encoding(line, file)
                if len(line) > LONGEST_LINE:
                    raise DataError(
                        f"{file}, line {number} has more than {LONGEST_LINE:,} bytes. Expected a row a line; is it a "
                        "file of text?"
                    )
                yield line, _decoded(line.removeprefix(BOM) if number == 1 else line, f"{file}, line {number}")
    except OSError as error:
        raise DataError(f"{file} can't be read: {error.strerror or error}.") from None


def _lines(file: str) -> Iterator[str]:
    return (text for _, text in raw_lines(file))


def _check_signature(start: bytes, file: str, expected: str) -> None:
    """Refuse a file that begins as one of another kind does, by the name of that kind."""
    kind, remedy = next((signature[1:] for signature in SIGNATURES if start.startswith(signature[0])), ("", ""))
    if kind:
        raise DataError(f"{file} is {kind}, expected {expected}: {remedy}.")


def _check_encoding(line: bytes, file: str) -> None:
    """Refuse a file that begins as no UTF-8 does, by the name of its encoding."""
    mark, encoding = next(
        (encoding_mark for encoding_mark in OTHER_MARKS if line.startswith(encoding_mark[0])), (b"", "")
    )
    sign = f"byte order mark {mark.hex(' ').upper()}"
    if not encoding:
        even, odd = line[:64:2], line[1:64:2]
        zeros = [not line[place:64:4].strip(b"\0") for place in range(4)]
        if len(line) >= 8 and zeros in ([False, True, True, True], [True, True, True, False]):
            encoding, sign = f"UTF-32{'BE' if zeros[0] else 'LE'}", "three of four bytes are 0"
        elif len(line) >= 4 and any(line[:64]) and (not even.strip(b"\0") or not odd.strip(b"\0")):
            encoding, sign = "UTF-16BE" if not even.strip(b"\0") else "UTF-16LE", "every second byte is 0"
    if encoding:
        raise DataError(
            f"{file} is {encoding} ({sign}), expected UTF-8. Convert it: "
            f"iconv -f {encoding} -t UTF-8 {quote(file)} > new file."
        )


def _decoded(line: bytes, where: str) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: byte {error.start + 1} of the line, 0x{line[error.start]:02x}, is not valid UTF-8. Convert the "
            "file from the encoding it has: Western European text is mostly Windows-1252 (iconv -f CP1252 -t UTF-8)."
        ) from None


def _jsonl(file: str, strict: bool = False) -> Generator[Placed, None, None]:
    read = parse_json if strict else json.loads
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            record = read(line)
            if "\\ud" in line or "\\uD" in line:
                json.dumps(record, ensure_ascii=False).encode()
        except json.JSONDecodeError as error:
            raise DataError(
                f"{where}: malformed JSON: {error.msg} at column {error.colno}, in {line.strip()!r:.80}. "
                f"Expected one JSON object a line.{_json_remedy(line, file, number)}"
            ) from None
        except UnicodeEncodeError:
            raise DataError(
                f"{where}: a \\u escape is half of a surrogate pair. Expected both halves, or the character."
            ) from None
        except (RecursionError, ValueError) as error:
            raise DataError(f"{where}: JSON that can't be read: {error}.") from None
        if not isinstance(record, dict):
            remedy = _json_remedy(line, file, number)
            raise DataError(f"{where}: found a JSON {type(record).__name__}, expected one JSON object a line.{remedy}")
        yield where, record


def _json_remedy(line: str, file: str, number: int) -> str:
    """Return what to do about a line that is no JSON object, where that can be told from it."""
    if number == 1 and line.lstrip().startswith("["):
        return f" The file is one JSON array: write its objects one a line (jq -c '.[]' {quote(file)} > rows.jsonl)."
    if number == 1 and line.strip() == "{":
        return f" The file has its objects over several lines: write each on one (jq -c . {quote(file)} > rows.jsonl)."
    return _bare_returns(line, file)


def _bare_returns(line: str, file: str) -> str:
    if "\r" not in line.rstrip("\r\n"):
        return ""
    convert = f"tr '\\r' '\\n' < {quote(file)} > new file"
    return f" Its lines end with CR alone, expected LF or CR LF: convert them ({convert})."


def _check_delimiter(header: list[str], file_format: FileFormat, where: str) -> None:
    """Refuse a header of a single cell that another delimiter would cut into several."""
    delimiters = {"\t": ("tabs", "set data.format: tsv"), ";": ("semicolons", "write it with commas")}
    delimiters["|"] = ("bars", "write it with commas")
    delimiters[","] = ("commas", "set data.format: csv")
    for delimiter, (plural, remedy) in delimiters.items():
        if len(header) == 1 and delimiter != DELIMITERS[file_format] and delimiter in header[0]:
            raise DataError(
                f"{where}: the header is one cell, {header[0]!r:.80}, whose names are separated by {plural}. Expected "
                f"{'tabs' if file_format == 'tsv' else 'commas'}: {remedy}."
            )


def csv_rows(file: str, lines: Iterator[str], delimiter: str = ",") -> Generator[tuple[str, list[str]], None, None]:
    """Yield where each CSV row starts, and its cells; the header first, lines without anything left out.

    Args:
        file: Its name, for messages.
        lines: Its lines; no more of them are taken than rows have been yielded.
        delimiter: What separates cells.

    Raises:
        DataError: A line is no CSV.
    """
    # The limit on a cell, 128 KiB unless raised, is a setting of the whole process: it is put back.
    limit = csv.field_size_limit(LARGEST_CELL)
    try:
        last = ""

        def checked_lines() -> Iterator[str]:
            nonlocal last
            for line in lines:
                last = line
                yield line

        reader = csv.reader(checked_lines(), strict=True, delimiter=delimiter)
        start = 1
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                remedy = _bare_returns(last, file)
                raise DataError(
                    f"{file}, line {start}: malformed CSV: {error}."
                    f"{remedy or ' Cells with commas, quotes or line ends must be quoted.'}"
                ) from None
            if cells:
                yield f"{file}, line {start}", cells
            start = reader.line_num + 1
    finally:
        csv.field_size_limit(limit)


def _csv_records(file: str, delimiter: str) -> Iterator[Placed]:
    rows = csv_rows(file, _lines(file), delimiter)
    where, header = next(rows, (file, []))
    _check_once(header, where, "the header")
    for where, cells in rows:
        if len(cells) != len(header):
            raise DataError(
                f"{where}: found {len(cells)} cells, expected {len(header)} as in the header ({', '.join(header)}). "
                "Is a comma or a line end unquoted?"
            )
        # An empty cell is an empty text where a text is due, and nothing at all elsewhere; `canonical_row` decides.
        yield where, dict(zip(header, cells, strict=True))


def _check_once(names: Sequence[str], where: str, kind: str) -> None:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(
            f"{where}: {kind} has {twice[0]!r} twice. Columns found: {', '.join(map(repr, names))}. Give each column a "
            "name of its own."
        )


def parquet_schema(file: str) -> Any:
    """Return a Parquet file's Arrow schema.

    Raises:
        DataError: It is no Parquet file.
    """
    return _parquet(file).schema_arrow


def _parquet(file: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        with suppress(OSError), open(file, "rb") as stream:
            start = stream.read(64)
            if not start.startswith(b"PAR1"):
                _check_signature(start, file, "Parquet")
        raise DataError(f"{file} is not a Parquet file that can be read: {error}") from None


def _parquet_records(file: str, columns: tuple[str, ...]) -> Iterator[Placed]:
    import pyarrow as pa

    reader = _parquet(file)
    row = 0
    try:
        for batch in reader.iter_batches(
            PARQUET_BATCH, columns=[name for name in reader.schema_arrow.names if name in columns]
        ):
            for record in batch.to_pylist():
                yield f"{file}, row {row} (counted from 0)", record
                row += 1
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: can't be read past row {row} (counted from 0): {error}") from None
