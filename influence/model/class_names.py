"""A classifier's class names, as its configuration has them: read without its weights."""

import transformers

from influence.model import adapter, folder
from influence.model.load import ModelSettings


def class_names(settings: ModelSettings) -> dict[str, int] | None:
    """Return a classifier's `label2id`; None of another model, or where adapters bring a head of their own.

    Raises:
        ModelError: There is no such folder.
        OSError: Its configuration can't be read.
    """
    if settings.kind != "sequence_classification":
        return None
    path = folder.locate(settings.path, settings.revision)
    adapted = folder.is_adapter(path)
    config = transformers.AutoConfig.from_pretrained(
        adapter.base_folder(path) if adapted else path,
        trust_remote_code=settings.trust_remote_code,
        local_files_only=not settings.trust_remote_code,
    )
    names = {str(name): int(label) for name, label in (getattr(config, "label2id", None) or {}).items()}
    if adapted and adapter.label_count(path) not in (None, len(names)):
        return None
    return names or None
