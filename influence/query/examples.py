"""The queries of one run as examples: read by its columns, named, and refused where its recipe can't answer them."""

from collections.abc import Iterable

from influence.data.example import Example
from influence.data.queries import Query, read_queries
from influence.query.attribute import named
from influence.query.baseline import check_asked
from influence.run_dir import RunDir


def query_examples(
    run: RunDir, queries: Iterable[Query], *, exact: bool = False, raw: bool = False
) -> tuple[Example, ...]:
    """Return queries of a run as examples, each with an id.

    Args:
        run: The run, whose columns name the queries' keys.
        queries: What is asked; see `influence.data.queries.Query`.
        exact: Whether exact scores are required, or candidates for them.
        raw: Ask about prompts and completions as they stand, also where the run's rows are chats.

    Raises:
        QueryError: A query has no content or several, or the run's baseline can't answer it.
        DataError: A value is of the wrong type.
    """
    examples = named(list(read_queries(queries, run.query_form.asking(raw=raw))))
    check_asked(run.recipe, run.path, examples, exact=exact)
    return examples
