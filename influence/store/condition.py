"""What a condition on rows may consist of, decided on the tree that DuckDB parses it to.

Whoever may ask may write a condition, so everything in it is on a list here: functions that look at one row, give the
same answer every time, take time in proportion to what they read, and make nothing much larger. `repeat`, `printf`,
`lpad`, `list_resize` make gigabytes of a line, `levenshtein` takes the product of two lengths: they aren't on it.
"""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from influence.errors import QueryError
from influence.store.evaluation import Evaluation

if TYPE_CHECKING:
    import duckdb

EMPTY = "--where is empty. Write what must be true of a row, as in source = 'x' and tokens > 50."
MAX_CHARACTERS = 1_000_000
MOST_TEXTS = 48
"""Functions in a condition that make a text."""
MOST_JOINED = 8
"""Texts in a condition that are joined to others."""
SECONDS = 60.0
CLASSES = (
    *("COLUMN_REF", "CONSTANT", "COMPARISON", "CONJUNCTION", "OPERATOR", "FUNCTION", "CAST", "BETWEEN", "CASE"),
    *("TYPE", "COLLATE"),
)
"""The kinds of node that a condition may consist of."""
OPERATORS = (
    *("COMPARE_IN", "COMPARE_NOT_IN", "OPERATOR_NOT", "OPERATOR_IS_NULL", "OPERATOR_IS_NOT_NULL"),
    *("OPERATOR_COALESCE", "OPERATOR_NULLIF", "OPERATOR_TRY", "ARRAY_EXTRACT", "ARRAY_SLICE"),
)
ARITHMETIC = ("+", "-", "*", "/", "//", "%", "**", "^", "@", "&", "|", "~", "<<", ">>", "xor", "mod", "pow", "power")
NUMBERS = (
    *("abs", "ceil", "ceiling", "floor", "round", "trunc", "sign", "sqrt", "cbrt", "exp", "ln", "log", "log2", "log10"),
    *("isnan", "isinf", "isfinite", "greatest", "least"),
)
MATCHES = (
    *("~~", "!~~", "~~*", "!~~*", "~~~", "^@", "like_escape", "not_like_escape", "ilike_escape", "not_ilike_escape"),
    *("regexp_matches", "regexp_full_match", "starts_with", "ends_with", "prefix", "suffix", "contains"),
)
MEASURES = (
    *("length", "len", "strlen", "char_length", "character_length", "bit_length", "ascii", "unicode", "ord"),
    *("instr", "strpos", "position", "hash"),
)
JOINS = ("||", "concat")
TEXTS = (
    *("lower", "upper", "lcase", "ucase", "trim", "ltrim", "rtrim", "left", "right", "substr", "substring"),
    *("reverse", "strip_accents", "nfc_normalize", "regexp_extract", "md5", "sha256"),
)
DATES = ("date_part", "datepart", "date_trunc", "year", "month", "day", "hour", "minute", "second", "week", "dayofweek")
LISTS_AND_NULLS = ("list_value", "list_contains", "row", "nullif", "ifnull")
FUNCTIONS = frozenset((*ARITHMETIC, *NUMBERS, *MATCHES, *MEASURES, *JOINS, *TEXTS, *DATES, *LISTS_AND_NULLS))
TYPES = frozenset(
    (
        *("boolean", "bool", "tinyint", "smallint", "integer", "int", "bigint", "hugeint", "utinyint", "usmallint"),
        *("uinteger", "ubigint", "uhugeint", "float", "real", "double", "decimal", "numeric", "varchar", "text"),
        *("string", "char", "date", "time", "timestamp", "timestamp_s", "timestamp_ms", "timestamp_ns", "long"),
        *("int1", "int2", "int4", "int8", "short", "float4", "float8", "datetime", "timestamp with time zone"),
    )
)
"""The types that a value may be cast to: none that holds others."""
Kind = Literal["text", "number"]


def parse_condition(evaluation: Evaluation, condition: str) -> dict[str, Any]:
    """Return the one expression that a condition is, as DuckDB parses it.

    Raises:
        QueryError: It is empty, too long, can't be read, or is more than one expression.
    """
    import duckdb

    if not condition.strip():
        raise QueryError(EMPTY)
    if len(condition) > MAX_CHARACTERS:
        raise QueryError(f"--where has {len(condition):,} characters; a condition has at most {MAX_CHARACTERS:,}.")
    statement = "SELECT json_serialize_sql(?)"
    try:
        text = evaluation.run(
            lambda database: database.execute(statement, [f"SELECT {enclosed(condition)}"]).fetchall()[0][0], SECONDS
        )
        document = json.loads(text)
    except duckdb.Error as error:
        raise unusable(condition, error) from None
    except (RecursionError, TimeoutError):
        raise _too_deep(condition) from None
    if document["error"]:
        if "max_expression_depth" in str(document.get("error_message")):
            raise _too_deep(condition)
        if document.get("error_type") == "parser":
            raise QueryError(
                f"--where {condition!r:.500} can't be read: {document['error_message']}. Write a condition as in SQL, "
                "texts in single quotes: source = 'x' and tokens > 50."
            )
        raise _not_allowed(condition, "another statement")
    statements = document["statements"]
    node = statements[0]["node"]
    if len(statements) != 1 or node["type"] != "SELECT_NODE" or node["from_table"]["type"] != "EMPTY":
        raise _not_allowed(condition, "another statement")
    clauses = ("where_clause", "having", "qualify", "sample", "modifiers", "group_expressions")
    if len(node["select_list"]) != 1 or any(node.get(clause) for clause in clauses):
        raise _not_allowed(condition, "another clause")
    tree = node["select_list"][0]
    if tree["class"] == "FUNCTION" and tree["function_name"] == "row" and not _arguments(tree):
        raise QueryError(EMPTY)  # brackets around comments alone
    return tree


def check_condition(evaluation: Evaluation, tree: dict[str, Any], condition: str, schema: pa.Schema) -> tuple[str, ...]:
    """Return the columns that an expression names.

    Raises:
        QueryError: It holds something that isn't let through, names a column or a function that there isn't, or
            compares a text with a number.
    """
    by_name = {name.lower(): name for name in schema.names}
    columns, texts, joined = set(), 0, 0
    for node in _nodes(tree):
        kind = node["class"]
        if kind not in CLASSES:
            raise _not_allowed(condition, f"a {kind.lower().replace('_', ' ')}")
        if kind == "COLUMN_REF":
            columns.add(_column(node, condition, by_name, schema))
        elif kind == "FUNCTION":
            _check_function(evaluation, node["function_name"], condition)
            texts += node["function_name"] in TEXTS
            joined += _arguments(node) if node["function_name"] in JOINS else 0
        elif kind == "OPERATOR" and node["type"] not in OPERATORS:
            raise _not_allowed(condition, f"the operator {node['type'].lower().replace('_', ' ')}")
        elif kind == "CAST":
            _check_type(node, condition)
    if texts > MOST_TEXTS or joined > MOST_JOINED:
        raise _not_allowed(
            condition,
            f"{texts} functions that make texts and {joined} texts that are joined; {MOST_TEXTS} and {MOST_JOINED} are "
            "the most",
        )
    for node in _nodes(tree):
        _check_comparison(node, condition, by_name, schema)
    return tuple(sorted(columns))


def enclosed(condition: str) -> str:
    """Return a condition in brackets, on lines of its own: a comment at its end must not swallow the second."""
    return f"(\n{condition}\n)"


def shown_columns(schema: pa.Schema) -> str:
    """Return the columns there are, with what they hold, as a list for a message."""
    return ", ".join(f"{field.name} ({_holds(field) or field.type})" for field in schema)


def unusable(condition: str, error: "duckdb.Error") -> QueryError:
    """Return what to say of a condition that DuckDB can't evaluate."""
    return QueryError(f"--where {condition!r:.500} can't be evaluated: {str(error).strip().splitlines()[0]}")


def _column(node: dict[str, Any], condition: str, columns: dict[str, str], schema: pa.Schema) -> str:
    name = ".".join(node["column_names"])
    if name.lower() not in columns:
        raise QueryError(
            f"--where {condition!r:.500}: there is no column {name!r}. Columns: {shown_columns(schema)}. "
            "Write texts in single quotes."
        )
    return columns[name.lower()]


def _check_function(evaluation: Evaluation, name: str, condition: str) -> None:
    if name in FUNCTIONS:
        return
    statement = "SELECT DISTINCT function_type, stability FROM duckdb_functions() WHERE function_name = ?"
    kinds = evaluation.run(lambda database: database.execute(statement, [name]).fetchall(), SECONDS)
    if not kinds:
        raise QueryError(f"--where {condition!r:.500}: there is no function {name!r}.")
    if set(kinds) != {("scalar", "CONSISTENT")}:
        raise _not_allowed(condition, f"{name}(), which is no function of a row alone")
    words = ", ".join(sorted(function for function in FUNCTIONS if function.isidentifier()))
    raise _not_allowed(condition, f"{name}(), which is not among the functions of a condition ({words})")


def _check_type(node: dict[str, Any], condition: str) -> None:
    # DuckDB 2 names a type by an expression, DuckDB 1 by its number's name.
    expression = node.get("type_expr") or {}
    name = str(expression.get("type_name") or (node.get("cast_type") or {}).get("id") or "?")
    if name.lower() not in TYPES:
        raise _not_allowed(condition, f"a cast to {name.lower()}")


def _check_comparison(node: dict[str, Any], condition: str, columns: dict[str, str], schema: pa.Schema) -> None:
    """Refuse to compare a text with a number: DuckDB casts the text, and fails at the first that is no number."""
    kind = node["class"]
    if kind == "COMPARISON":
        sides = [node["left"], node["right"]]
    elif kind == "BETWEEN":
        sides = [node["input"], node["lower"], node["upper"]]
    elif kind == "OPERATOR" and node["type"] in ("COMPARE_IN", "COMPARE_NOT_IN"):
        sides = node["children"]
    else:
        return
    kinds = {id(side): _kind(side, columns, schema) for side in sides}
    column = next((side for side in sides if side["class"] == "COLUMN_REF" and kinds[id(side)] == "text"), None)
    number = next((side for side in sides if kinds[id(side)] == "number"), None)
    if column is None or number is None:
        return
    name = ".".join(column["column_names"])
    value = _literal(number)
    advice = f"write {name} = '{value}' in quotes, or {name}::int" if value else f"write {name}::int"
    raise QueryError(
        f"--where {condition!r:.500} compares {name}, which is text, with "
        f"{f'the number {value}' if value else 'a number'}: {advice}, which fails where a text is no number."
    )


def _kind(node: dict[str, Any], columns: dict[str, str], schema: pa.Schema) -> Kind | None:
    """Return what a part of a comparison is, None where it isn't known before it is evaluated."""
    kind = node["class"]
    if kind == "COLUMN_REF":
        return _holds(schema.field(columns[".".join(node["column_names"]).lower()]))
    if kind == "CONSTANT":
        return "number" if _literal(node) is not None else None
    return "number" if kind == "FUNCTION" and node["function_name"] in ("+", "-", "*", "/", *MEASURES) else None


def _holds(field: pa.Field) -> Kind | None:
    if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
        return "text"
    return "number" if pa.types.is_integer(field.type) or pa.types.is_floating(field.type) else None


def _literal(node: dict[str, Any]) -> str | None:
    """Return a number as it was written, None for any other node."""
    if node["class"] != "CONSTANT":
        return None
    literal, value = node.get("literal"), node.get("value") or {}
    if literal:
        return str(literal["text"]) if literal["kind"] in ("INTEGER", "DECIMAL", "FLOAT", "DOUBLE", "NUMERIC") else None
    numeric = ("INTEGER", "BIGINT", "HUGEINT", "DECIMAL", "DOUBLE")
    return str(value.get("value")) if (value.get("type") or {}).get("id") in numeric else None


def _arguments(node: dict[str, Any]) -> int:
    return len(node.get("arguments") or node.get("children") or ())


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield every node of an expression, those above first."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            if "class" in node:
                yield node
            waiting += reversed(list(node.values()))
        elif isinstance(node, list):
            waiting += reversed(node)


def _too_deep(condition: str) -> QueryError:
    return QueryError(f"--where {condition!r:.200} is nested too deeply to be read. Write a simpler condition.")


def _not_allowed(condition: str, part: str) -> QueryError:
    return QueryError(
        f"--where {condition!r:.500} holds {part}. It may compare and compute with a row's columns, and nothing more."
    )
