"""A hook of MkDocs: pages that are generated from what they describe, so that there is no copy to go stale."""

import json
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from scripts.docs.cli_reference import reference
from scripts.docs.notebook import NOTEBOOK, page

ROOT = Path(__file__).parents[2]
_LINK_INTO_DOCS = re.compile(r"\]\(docs/")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages: the command line, the notebook, SECURITY.md and CHANGELOG.md."""
    pages = {
        "cli.md": reference(),
        "notebook.md": page(json.loads(NOTEBOOK.read_text())),
        "security.md": _from_root("SECURITY.md"),
        "changelog.md": _from_root("CHANGELOG.md"),
    }
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def _from_root(name: str) -> str:
    """Return a file of the repository's top, with its links into docs/ as links between pages."""
    return _LINK_INTO_DOCS.sub("](", (ROOT / name).read_text())
