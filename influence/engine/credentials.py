"""TLS keys of one cluster: only a process that has them can connect to its coordinator and its workers.

A scheduler runs whatever it is sent, so an open port lets everyone who reaches it run code: on a login node, every user
of the machine. Each cluster that a build starts has a key pair of its own, which is both the authority and the only
certificate. Both ends of every connection must show it. It stays in memory, except for jobs of a batch queue, which
read it from files in a folder that only the user can open.

    python -m influence.engine.credentials FOLDER     # write a pair for a scheduler of one's own, print the settings
"""

import datetime
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from distributed.security import Security

from influence.cluster import TlsSettings
from influence.errors import ClusterError

NAME = "influence"
SKEW = datetime.timedelta(days=1)
"""How far the clock of another node may be behind."""
LIFETIME = datetime.timedelta(days=400)
ROLES = ("client", "scheduler", "worker")
CERTIFICATE, KEY = "certificate.pem", "key.pem"


@dataclass(frozen=True)
class Credentials:
    """A self-signed certificate and its private key, both in PEM; or the paths of files that hold them."""

    certificate: str
    key: str

    def security(self) -> Security:
        """Return what `distributed` asks every connection of a cluster for. Keys in memory stay there."""
        certificates = {f"tls_{role}_cert": self.certificate for role in ROLES}
        keys = {f"tls_{role}_key": self.key for role in ROLES}
        return Security(require_encryption=True, tls_ca_file=self.certificate, **certificates, **keys)

    def write(self, folder: Path) -> "Credentials":
        """Write both into a folder, readable by nobody else, and return the same credentials as paths.

        Args:
            folder: Where to; made here, with the user's permissions alone.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        paths = folder / CERTIFICATE, folder / KEY
        for path, text in zip(paths, (self.certificate, self.key), strict=True):
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(text)
        return Credentials(*map(str, paths))

    def environment(self) -> dict[str, str]:
        """Return dask's settings, as environment variables, that let any of its processes use these files."""
        settings = {"REQUIRE_ENCRYPTION": "True", "TLS__CA_FILE": self.certificate}
        for role in ROLES:
            settings |= {f"TLS__{role.upper()}__CERT": self.certificate, f"TLS__{role.upper()}__KEY": self.key}
        return {f"DASK_DISTRIBUTED__COMM__{name}": value for name, value in settings.items()}


def draw_credentials() -> Credentials:
    """Make a new key pair on the curve P-256, valid for 400 days."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.datetime.now(tz=datetime.UTC)
    builder = x509.CertificateBuilder(subject_name=name, issuer_name=name, public_key=key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - SKEW).not_valid_after(now + LIFETIME)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    certificate = builder.sign(key, hashes.SHA256())
    return Credentials(
        certificate.public_bytes(Encoding.PEM).decode(),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
    )


def client_security(settings: TlsSettings | None) -> Security:
    """Return how to connect to a scheduler that someone else runs.

    Args:
        settings: The files of `cluster.tls`; None takes dask's own settings.

    Raises:
        ClusterError: A file can't be read.
    """
    if settings is None:
        return Security()
    paths = {name: Path(path).expanduser() for name, path in settings.model_dump().items()}
    for name, path in paths.items():
        try:
            path.read_bytes()
        except OSError as error:
            raise ClusterError(f"cluster.tls.{name} is {path}, which can't be read: {error.strerror}.") from error
    return Security(
        require_encryption=True,
        tls_ca_file=str(paths["ca_file"]),
        tls_client_cert=str(paths["cert"]),
        tls_client_key=str(paths["key"]),
    )


if __name__ == "__main__":
    for variable, value in draw_credentials().write(Path(sys.argv[1]).absolute()).environment().items():
        sys.stdout.write(f"export {variable}={shlex.quote(value)}\n")
