"""Which training examples made the model say this?

    import influence

    run = influence.build("run.yaml", out="runs/x")       # or influence.open("runs/x")
    hits = run.query(prompt="…", completion="…", k=10)    # hits.promoting, hits.opposing, hits.to_pandas()

The names below are public; each is imported when it is first used, so that `import influence` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from influence.api import Run, build, open
    from influence.errors import InfluenceError
    from influence.query.hits import Hit, Hits
    from influence.query.pairwise import pairwise
    from influence.recipes import SIGN_RULE, Recipe, recipe
    from influence.task import Task

    __version__: str

_HOMES = {
    "build": "api",
    "open": "api",
    "Run": "api",
    "pairwise": "query.pairwise",
    "Hit": "query.hits",
    "Hits": "query.hits",
    "recipe": "recipes",
    "Recipe": "recipes",
    "SIGN_RULE": "recipes",
    "Task": "task",
    "InfluenceError": "errors",
}

__all__ = [  # noqa: F822, RUF100 – all of them come from `__getattr__`
    "SIGN_RULE",
    "Hit",
    "Hits",
    "InfluenceError",
    "Recipe",
    "Run",
    "Task",
    "__version__",
    "build",
    "open",
    "pairwise",
    "recipe",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("influence")
    if name not in _HOMES:
        raise AttributeError(f"module 'influence' has no attribute {name!r}")
    home = import_module(f"influence.{_HOMES[name]}")
    return home if name == _HOMES[name] else getattr(home, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
