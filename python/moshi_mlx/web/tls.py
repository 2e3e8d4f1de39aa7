"""TLS for a server that others may reach: a given certificate, or one made here."""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, StorageError
from .paths import why_no_file

if TYPE_CHECKING:
    from cryptography.x509 import GeneralName


def load_context(folder: Path) -> ssl.SSLContext:
    """The server's side of TLS with `cert.pem` and `key.pem` of a folder.

    Raises:
        InputError: one of them is missing or isn't what it should be.
    """
    certificate, key = folder / "cert.pem", folder / "key.pem"
    for path in (certificate, key):
        if (reason := why_no_file(path)) is not None:
            raise InputError(f"{path}: {reason}; --ssl names a folder with cert.pem and key.pem.")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError) as error:
        raise InputError(f"The certificate in {folder} can't be used: {error}. Check cert.pem and key.pem.") from error
    return context


def own_certificate(folder: Path, host: str) -> Path:
    """A folder with a self-signed certificate for this machine, kept so that a browser needs to be told of it once.

    Made anew where there's none to be read, where it has a day left or less, or where it isn't for `host`.

    Raises:
        StorageError: the folder can't be written.
    """
    # Heavy to import, and needed here only.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    names = _names(host)
    path = folder / "cert.pem"
    now = datetime.now(timezone.utc)
    if why_no_file(path) is None and why_no_file(folder / "key.pem") is None:
        try:
            known = x509.load_pem_x509_certificate(path.read_bytes())
            alternatives = known.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            left = known.not_valid_after_utc - now
            if left > timedelta(days=1) and {str(name.value) for name in alternatives} >= set(names):
                return folder
        except (OSError, ValueError, x509.ExtensionNotFound):
            pass  # not one of ours, or not to be read: replaced

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Moshi on this machine")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=365))  # browsers refuse more than 398 days
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    secret = key.private_bytes(pem, pkcs8, serialization.NoEncryption())
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.unlink(missing_ok=True)  # it isn't the new key's
        _write_private(folder / "key.pem", secret)
        path.write_bytes(certificate.public_bytes(pem))
    except OSError as error:
        raise StorageError(f"The certificate can't be written to {folder}: {error}. Give one with --ssl.") from error
    return folder


def _names(host: str) -> list[str]:
    """The names and addresses by which this machine may be reached."""
    names = ["localhost", "127.0.0.1", "::1", socket.gethostname()]
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        found = []
    names += [str(address[0]).partition("%")[0] for *_, address in found]
    names += [address] if (address := outward_address()) else []
    if host not in ("0.0.0.0", "::"):
        names.append(host)
    return list(dict.fromkeys(label for name in names if (label := _ascii(name))))


def _ascii(name: str) -> str | None:
    """A name as certificates hold it: münchen.local is xn--mnchen-3ya.local; None where it's no host's name."""
    try:
        return name.encode("idna").decode()
    except UnicodeError:
        return None


def outward_address() -> str | None:
    """This machine's address in its network; nothing is sent to find out."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # reserved for documentation (RFC 5737)
            return str(probe.getsockname()[0])
        except OSError:
            return None


def _general_name(name: str) -> GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read, from its first byte on."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
