"""One run directory, opened: where it is, how it was built, and its rows. Everything that reads a run takes this."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from influence.config import RunConfig
from influence.data.columns import Columns
from influence.data.queries import QueryForm
from influence.recipes import Recipe
from influence.store.manifest import Manifest
from influence.store.reader import Store


@dataclass(frozen=True)
class RunDir:
    """One run directory. It holds no model.

    Attributes:
        path: The run directory, absolute.
        config: Its whole resolved configuration.
        store: Its rows.
    """

    path: Path
    config: RunConfig
    store: Store

    @property
    def manifest(self) -> Manifest:
        """What the rows are."""
        return self.store.manifest

    @property
    def rows(self) -> int:
        """N, the rows of the data set."""
        return self.store.rows

    @property
    def recipe(self) -> Recipe:
        """How rows are scored."""
        return self.config.recipe

    @cached_property
    def query_form(self) -> QueryForm:
        """How queries are read: by the names of the data's columns, and as chats where the rows are."""
        parts = self.manifest.fingerprint_parts
        columns = Columns.model_validate_json(str(parts["data.columns"]))
        chats = bool(parts.get("data.chats")) or columns.messages is not None
        return QueryForm(columns, chats, labels=self.config.model.kind != "causal_lm")
