"""Which training examples made the model say this?

    import influence

    run = influence.build("run.yaml", out="runs/x")       # or influence.open("runs/x")
    hits = run.query(prompt="…", completion="…", k=10)    # hits.promoting, hits.opposing, hits.to_pandas()

The names below are public; each is imported when it is first used, so that `import influence` costs nothing.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from influence.errors import InfluenceError
    from influence.query.hits import Hit, Hits
    from influence.query.pairwise import pairwise
    from influence.recipe import SIGN_RULE, Recipe, recipe
    from influence.run import Run, build, open
    from influence.task import Task

    __version__: str

_HOMES = {
    "build": "run",
    "open": "run",
    "Run": "run",
    "pairwise": "query.pairwise",
    "Hit": "query.hits",
    "Hits": "query.hits",
    "recipe": "recipe",
    "Recipe": "recipe",
    "SIGN_RULE": "recipe",
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


class _RecipeRoom(ModuleType):
    """The room `recipe`, which can be called like the function of its name."""

    recipe: Callable[..., Any]

    def __call__(self, name: str = "whitened", /, **parts: Any) -> Any:
        return self.recipe(name, **parts)


class _Package(ModuleType):
    """`influence.recipe` is a room and a public function; whichever was meant, and imported first, both work."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "recipe" and isinstance(value, ModuleType):
            value.__class__ = _RecipeRoom
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
