"""A user's own runs, told from those of strangers: each build signs its configuration with a secret of the user's.

The signature is a file of the run, `config.sig`: HMAC-SHA256 over the run's fingerprint and the bytes of `config.yaml`.
Jupyter trusts notebooks in the same way. The secret is a file that only the user can read, made when it is first
needed; machines that share it (a home directory, `INFLUENCE_SECRET_FILE`) trust the same runs.
"""

import hmac
import json
import logging
import os
import secrets
import stat
from hashlib import sha256
from pathlib import Path

from influence.artifacts.partial import write_whole
from influence.artifacts.regular import read_regular
from influence.errors import StoreError

SIGNATURE = "config.sig"
FILE = "INFLUENCE_SECRET_FILE"
"""Where the secret is, in the place of `XDG_DATA_HOME/influence/secret`."""
DATA = "XDG_DATA_HOME"
PURPOSE = b"influence run configuration, version 1\n"
"""Keeps the secret's other uses, should there ever be any, from being taken for this one."""
BYTES = 32

log = logging.getLogger(__name__)


def sign(run_dir: Path, fingerprint: str, config: bytes) -> None:
    """Sign a run's configuration; where there is no secret and none can be made, log that and leave it unsigned.

    Args:
        run_dir: The run.
        fingerprint: Of the run.
        config: The bytes of its `config.yaml`.

    Raises:
        StoreError: The run's directory can't be written to.
    """
    secret = _secret(make=True)
    if secret is not None:
        document = {"signed": "config.yaml", "hmac-sha256": _mac(secret, fingerprint, config)}
        write_whole(run_dir / SIGNATURE, json.dumps(document).encode() + b"\n")


def is_signed(run_dir: Path, fingerprint: str, config: bytes) -> bool:
    """Whether this user signed the configuration as it stands."""
    try:
        found = json.loads(read_regular(run_dir / SIGNATURE))["hmac-sha256"]
    except (OSError, StoreError, ValueError, KeyError, TypeError, RecursionError):
        return False
    secret = _secret(make=False)
    if secret is None or not isinstance(found, str):
        return False
    return hmac.compare_digest(found.encode(), _mac(secret, fingerprint, config).encode())


def secret_file() -> Path:
    """Return where the user's secret is, or would be."""
    named = os.environ.get(FILE)
    if named:
        return Path(named).expanduser()
    above = os.environ.get(DATA, "")
    return (Path(above) if os.path.isabs(above) else Path.home() / ".local" / "share") / "influence" / "secret"


def _mac(secret: bytes, fingerprint: str, config: bytes) -> str:
    return hmac.new(secret, PURPOSE + fingerprint.encode() + b"\n" + config, sha256).hexdigest()


def _secret(*, make: bool) -> bytes | None:
    """Return the user's secret, None where there is none or others can read or write it."""
    try:
        path = secret_file()
        if make and not path.exists():
            _create(path)
        content = read_regular(path)
        found = os.stat(path)
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError, StoreError) as error:
        log.warning("Runs aren't signed here, and count as somebody else's: %s", error)
        return None
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077 or len(content) < BYTES:
        log.warning(
            "%s isn't used: it must hold %d bytes, belong to you (uid %d; found %d) and be readable to nobody else "
            "(mode 0600; found %04o). Until then runs aren't signed here, and count as somebody else's.",
            *(path, BYTES, os.geteuid(), found.st_uid, stat.S_IMODE(found.st_mode)),
        )
        return None
    return content


def _create(path: Path) -> None:
    """Make the secret, whole or not at all; of several processes that do so at once, the first one's stands."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(secrets.token_bytes(BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(partial, path)
        except FileExistsError:
            return
    finally:
        partial.unlink(missing_ok=True)
    log.info("Made %s, a secret that signs the runs you build. Keep it to yourself.", path)


__all__ = ["SIGNATURE", "is_signed", "secret_file", "sign"]
