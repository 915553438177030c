"""A model's folder: where it is, what it holds, and whether its files can be trusted.

A name that is no folder is looked for on the model hub and fetched into its cache; from there on it is a folder like
any other. Only safetensors are read. A pickle (`pytorch_model.bin`) can run code when it is opened, so it is refused,
never converted.
"""

import hashlib
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import huggingface_hub
from safetensors import SafetensorError, safe_open

from index import strict_json
from influence.artifacts.checksum import cached_sha256
from influence.artifacts.regular import irregular
from influence.errors import ModelError

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
WEIGHTS, WEIGHTS_INDEX, ADAPTER_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
VOCABULARIES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "*.model",
    "vocab.*",
    "tekken.json",
    "*.tiktoken",
)
TOKENISER_FILES = (*VOCABULARIES, "merges.txt", "added_tokens.json", "special_tokens_map.json", "chat_template*")
SUFFIXES = (".safetensors", ".json", ".txt", ".jinja", ".model", ".tiktoken", ".py")
"""Of the files that a model or a tokeniser is made of."""
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def locate(path: str, revision: str | None, key: str = "model.path") -> Path:
    """Return the folder that a path or a hub name stands for, fetching it into the hub's cache where needed.

    Args:
        path: A folder, or a name on the model hub such as `org/name`.
        revision: A branch, tag or commit of the hub; a folder has none.
        key: The key that named it, for the message.

    Raises:
        ModelError: There is no such folder, and the hub has no such model or can't be reached.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return _regular(folder)
    if folder.is_file():
        raise ModelError(f"{key} is the file {folder}; expected the folder that holds it, with its {CONFIG}.")
    if not HUB_NAME.fullmatch(path):
        raise ModelError(f"{key} is {path}: there is no such folder (and it can't be the name of a model on the hub).")
    patterns = ["*.safetensors", "*.json", "*.txt", "*.py", "*.jinja", *TOKENISER_FILES]
    try:
        fetched = huggingface_hub.snapshot_download(
            path, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*", "consolidated*"]
        )
    except (OSError, ValueError) as error:
        version = f" at revision {revision!r}" if revision else ""
        raise ModelError(
            f"{key} is {path!r}: there is no such folder here ({Path.cwd() / path}), and the model hub gave none of "
            f"that name{version}: {first_line(error)} Correct the path, or fetch the model where the hub can be "
            "reached."
        ) from error
    return _regular(Path(fetched))


def _regular(folder: Path) -> Path:
    """Return a folder whose files are files: transformers passes over a broken link as if nothing were there."""
    for path in folder.iterdir():
        kind = irregular(path) if path.suffix in SUFFIXES else None
        if kind is not None:
            raise ModelError(
                f"{path} is {kind}, expected a regular file. Copy the whole model again, with what links lead to "
                "(cp -rL)."
            )
    return folder


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds PEFT adapters instead of a whole model."""
    return (folder / ADAPTER_CONFIG).is_file()


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the safetensors files that hold a folder's weights, in the order of their names.

    Raises:
        ModelError: The folder has no config, no weights, pickled weights only, or lacks a file that its index lists.
    """
    if is_adapter(folder):
        files = [folder / ADAPTER_WEIGHTS]
    elif not (folder / CONFIG).is_file():
        raise ModelError(f"{folder} holds no {CONFIG}, so it is no model folder. {_contents(folder)}")
    elif not (folder / WEIGHTS).is_file() and (folder / WEIGHTS_INDEX).is_file():
        listed = set(read_json(folder / WEIGHTS_INDEX).get("weight_map", {}).values())
        outside = [name for name in listed if not isinstance(name, str) or Path(name).name != name]
        if outside:
            raise ModelError(
                f"{folder / WEIGHTS_INDEX} lists {outside[0]!r}; expected names of files beside it. A model's weights "
                "lie in its own folder: copy the whole model again, or save it with save_pretrained."
            )
        files = [folder / name for name in sorted(listed)]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ModelError(
                f"{folder} lacks {', '.join(missing)}, listed in its {WEIGHTS_INDEX}. Copy the whole model again."
            )
        if files:
            return tuple(files)
    else:
        files = [folder / WEIGHTS]
    if all(file.is_file() for file in files) and files:
        return tuple(files)
    pickles = sorted(
        path.name for pattern in PICKLES for path in folder.glob(pattern) if path.name != "training_args.bin"
    )
    if pickles:
        raise ModelError(
            f"{folder} holds its weights only as pickles ({', '.join(pickles[:3])}), which can run code when opened "
            "and are never read here. If you trust them, convert them once: load the model with from_pretrained(…) and "
            "save it with save_pretrained(…, safe_serialization=True), which writes safetensors; then name that folder."
        )
    raise ModelError(f"{folder} holds no weights: expected {files[0].name if files else WEIGHTS}. {_contents(folder)}")


def check_readable(files: Iterable[Path]) -> None:
    """Open every file's header, so that a damaged one is named.

    Raises:
        ModelError: A file is truncated or no safetensors file.
    """
    for file in files:
        try:
            weight_names(file)
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{file} can't be read as safetensors ({first_line(error)}); it holds {file.stat().st_size:,} bytes. "
                "It is damaged or was copied only in part: copy or save it again."
            ) from error


def weight_names(file: Path) -> set[str]:
    """Return the names of the tensors in a safetensors file."""
    with safe_open(file, framework="pt") as tensors:
        return set(tensors.keys())


def count_weights(file: Path) -> int:
    """Return how many numbers the tensors in a safetensors file are."""
    with safe_open(file, framework="pt") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118


def tokeniser_files(folder: Path) -> tuple[Path, ...]:
    """Return the files of a folder that decide how text becomes tokens; empty where it holds no vocabulary."""
    if not any(path.is_file() for pattern in VOCABULARIES for path in folder.glob(pattern)):
        return ()
    files = {path for pattern in TOKENISER_FILES for path in folder.glob(pattern) if path.is_file()}
    files |= set((folder / "additional_chat_templates").glob("*.jinja"))
    return tuple(sorted(files))


def digest(files: Iterable[Path]) -> str:
    """Return a sha256 over the names and the bytes of files, whatever folder they lie in."""
    total = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.name):
        total.update(f"{file.name} {cached_sha256(file)}\n".encode())
    return total.hexdigest()


def hub_commit(folder: Path) -> str | None:
    """Return the commit of a snapshot in the hub's cache, which names its content; None for any other folder."""
    is_snapshot = folder.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", folder.name)
    return folder.name if is_snapshot else None


def check_blobs(files: Iterable[Path]) -> None:
    """Hold files of a snapshot in the hub's cache to their names there, which are digests of what was downloaded.

    A snapshot's files are links to `blobs/`: large ones are named by their SHA-256, others as git names a blob.

    Raises:
        ModelError: One has changed since.
    """
    for file in files:
        name = file.resolve().name if file.is_symlink() else ""
        if re.fullmatch("[0-9a-f]{64}", name):
            digest = cached_sha256(file)
        elif re.fullmatch("[0-9a-f]{40}", name):
            content = file.read_bytes()
            digest = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        else:
            continue
        if digest != name:
            raise ModelError(
                f"{file} in the hub's cache has changed since it was downloaded: its digest is {digest}, the hub gave "
                f"{name}. Remove {file.resolve()}, and it is downloaded again."
            )


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file's object.

    Raises:
        ModelError: The file can't be read, or isn't a JSON object.
    """
    try:
        document = strict_json.read_json(path, constants=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} can't be read as JSON: {first_line(error)}") from error
    if not isinstance(document, dict):
        raise ModelError(f"{path} holds a JSON {type(document).__name__}; expected an object.")
    return document


def first_line(error: BaseException) -> str:
    """Return the part of a library's error that fits into a sentence of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}…"


def _contents(folder: Path) -> str:
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    checkpoints = [name for name in names if re.fullmatch(r"checkpoint-\d+/", name)]
    if checkpoints:
        return f"It holds training checkpoints ({', '.join(checkpoints[-3:])}): name one of those folders."
    return f"It holds {', '.join(names[:8])}{', …' if len(names) > 8 else ''}." if names else "It is empty."
