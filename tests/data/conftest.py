"""Data files written on the spot."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

WriteJsonl = Callable[..., Path]


@pytest.fixture
def jsonl(tmp_path: Path) -> WriteJsonl:
    """`jsonl(records, name="rows.jsonl")`: a file of them."""

    def write(records: Iterable[dict[str, Any]], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
        return path

    return write


@pytest.fixture
def textfile(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    """`textfile(name, content)`: a file of exactly those characters or bytes."""

    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write
