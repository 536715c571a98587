"""A private CA and a certificate that it signed for 127.0.0.1, for tests of TLS."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

DAY = datetime.timedelta(days=1)


def make_ca_and_server(folder: Path) -> tuple[Path, Path, Path]:
    """Files in `folder`: the CA's certificate, the server's certificate, and the server's key."""
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    identity = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
    )
    usage |= {"digital_signature": True, "encipher_only": False, "decipher_only": False}
    authority = _builder("test CA", ca_key).add_extension(x509.BasicConstraints(True, None), True)
    authority = authority.add_extension(
        x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), True
    )
    authority = authority.add_extension(identity, False)
    server = _builder("127.0.0.1", key)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    server = server.add_extension(address, False).add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identity), False
    )
    pem = serialization.Encoding.PEM
    files = folder / "ca.pem", folder / "server.pem", folder / "key.pem"
    for file, certificate in zip(files, (authority, server), strict=False):
        file.write_bytes(certificate.sign(ca_key, hashes.SHA256()).public_bytes(pem))
    files[2].write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
    return files


def _builder(name: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder(
        _name("test CA"), _name(name), key.public_key(), x509.random_serial_number()
    )
    return made.not_valid_before(now - DAY).not_valid_after(now + DAY)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])
