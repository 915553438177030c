"""What is left of a stranger's configuration: local files that are no pickles, computed with in the calling process.

A run's `config.yaml` can ask for remote code, for a scheduler (whose pickles workers run), for lines in a job's script,
for names that are looked up on a hub. None of that happens where the run isn't signed by the user, or was changed
since, and nobody consented. Each setting is replaced by one that can't do it, so that no reader need know of trust.
"""

import os
from pathlib import Path

from influence.artifacts.place import is_remote
from influence.cluster import ClusterSettings
from influence.config import RunConfig
from influence.data.dataset import DataSettings
from influence.errors import ConfigError
from influence.model.folder import ADAPTER_CONFIG, is_adapter, read_json
from influence.model.load import ModelSettings
from influence.recipes import Recipe

CONSENT = "--trust-run consents (in Python: influence.open(path, trust=True))"
OWN_ATTENTION = (None, "eager", "sdpa", "flex_attention")
"""Attention that torch and transformers bring; any other name may be a kernel that is fetched."""


def restricted(config: RunConfig, run_dir: Path) -> tuple[RunConfig, tuple[str, ...]]:
    """Return what may be done of a configuration without consent, and what it asked for beyond that, a line each.

    Raises:
        ConfigError: It can't be used without: it names an optimiser's state that is a pickle, a kernel, or adapters of
            a model that isn't here.
    """
    folder = Path.cwd() if is_remote(run_dir) else run_dir
    _refuse(config)
    model, withheld = _model(config.model, folder)
    data, more = _data(config.data, folder)
    recipe, again = _recipe(config.recipe, folder)
    cluster, last = _cluster(config.cluster)
    update = {"model": model, "data": data, "recipe": recipe, "cluster": cluster}
    changed = config.model_copy(update=update)
    _refuse_fetched_bases(changed)
    return changed, (*withheld, *more, *again, *last)


def _refuse(config: RunConfig) -> None:
    if config.model.attention not in OWN_ATTENTION:
        raise ConfigError(
            f"The run asks for model.attention {config.model.attention!r}, which may be a kernel that is fetched and "
            f"run, and it isn't one that you built: not done. {CONSENT}."
        )
    checkpoints = len(config.recipe.checkpoints) or 1
    states = config.recipe.optimiser_states(checkpoints) if config.recipe.gradient.kind == "adam" else ()
    pickled = next((state for state in states if state is not None and not state.endswith(".safetensors")), None)
    if pickled is not None:
        raise ConfigError(
            f"The run asks for the optimiser's state {pickled}, a pickle, and it isn't one that you built: not read. "
            f"{CONSENT}; or save the second moments as safetensors and build with those."
        )


def _refuse_fetched_bases(config: RunConfig) -> None:
    """Refuse adapters whose own configuration names a model that isn't here: it would be looked up on a hub."""
    for path in (config.model.path, *(checkpoint.path for checkpoint in config.recipe.checkpoints)):
        folder = Path(str(path))
        base = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path") if is_adapter(folder) else None
        if isinstance(base, str) and not Path(base).expanduser().is_dir():
            raise ConfigError(
                f"The run's adapters in {folder} are for {base!r}, which is no folder here and would be looked up on a "
                f"hub, and the run isn't one that you built: not done. {CONSENT}."
            )


def _model(model: ModelSettings, folder: Path) -> tuple[ModelSettings, tuple[str, ...]]:
    told = []
    if model.trust_remote_code:
        told.append("model.trust_remote_code: no Python file of its model is run; a model that has some is refused")
    if model.device_map is not None:
        told.append(f"model.device_map {model.device_map!r}: its model is loaded onto one device")
    path, asked = _local(model.path, folder, "model.path")
    tokeniser, too = (None, ()) if model.tokeniser is None else _local(model.tokeniser, folder, "model.tokeniser")
    update = {"trust_remote_code": False, "device_map": None, "path": path, "tokeniser": tokeniser}
    return model.model_copy(update=update), (*told, *asked, *too)


def _data(data: DataSettings, folder: Path) -> tuple[DataSettings, tuple[str, ...]]:
    if data.format == "hub":
        path = os.path.abspath(folder / Path(data.path).name)
        told = (f"data.path {data.path!r}, a data set of the hub: nothing is fetched",)
        return data.model_copy(update={"format": "auto", "path": path}), told
    path, told = _local(data.path, folder, "data.path")
    return data.model_copy(update={"path": path}), told


def _recipe(recipe: Recipe, folder: Path) -> tuple[Recipe, tuple[str, ...]]:
    told: list[str] = []
    checkpoints = []
    for number, checkpoint in enumerate(recipe.checkpoints):
        path, asked = _local(str(checkpoint.path), folder, f"recipe.checkpoints.{number}.path")
        checkpoints.append(checkpoint.model_copy(update={"path": path}))
        told += asked
    return recipe.model_copy(update={"checkpoints": tuple(checkpoints)}), tuple(told)


def _local(found: str, folder: Path, setting: str) -> tuple[str, tuple[str, ...]]:
    """Return a path as an absolute one, which is the name of nothing on a hub, and what was asked for if it was one."""
    path = os.path.abspath(folder / Path(found).expanduser())
    if os.path.isabs(os.path.expanduser(found)) or found.startswith(".") or os.path.exists(path):
        return path, ()
    return path, (f"{setting} {found!r}, which is no folder here and may be a name on a hub: nothing is fetched",)


def _cluster(cluster: ClusterSettings) -> tuple[ClusterSettings, tuple[str, ...]]:
    """Return the cluster section of a run that the calling process computes, in portions as before."""
    # Made anew, so that a setting that there isn't yet has its default.
    here = ClusterSettings(
        workers=0,
        threads_per_worker=min(cluster.threads_per_worker, os.cpu_count() or 1),
        token_budget=cluster.token_budget,
        device=cluster.device if cluster.kind == "local" else "auto",
    )
    if cluster.kind == "local":
        return here, ()
    asked = f"the scheduler {cluster.address}" if cluster.kind == "address" else f"cluster.kind {cluster.kind}"
    return here, (f"{asked}: this process computes (--cluster names one of your own)",)


__all__ = ["CONSENT", "restricted"]
