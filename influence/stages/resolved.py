"""A run's configuration with everything decided that was left open when it began, as its `config.yaml` has it."""

from typing import Any

from influence.config import RunConfig
from influence.data.columns import Columns
from influence.store.manifest import Manifest


def resolved(config: RunConfig, manifest: Manifest) -> RunConfig:
    """Return the configuration as the run's manifest settled it: columns, shards, and what a worker had to decide."""
    parts: dict[str, Any] = manifest.fingerprint_parts
    columns = Columns.model_validate_json(str(parts["data.columns"]))
    update: dict[str, Any] = {
        "data": config.data.model_copy(update={"columns": columns}),
        "store": config.store.model_copy(update={"rows_per_shard": parts["store.rows_per_shard"]}),
    }
    # A run of texts has no worker that decides what a model computes in.
    if "model.dtype" in parts:
        decided = {"device": parts["cluster.device"], "token_budget": parts["cluster.token_budget"]}
        update["model"] = config.model.model_copy(update={"dtype": parts["model.dtype"]})
        update["cluster"] = config.cluster.model_copy(update=decided)
    return config.model_copy(update=update)
