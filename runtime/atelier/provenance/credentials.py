"""The certificate and key that manifests are signed with: from files, or a pair made for trials."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from atelier.errors import SettingsError
from atelier.settings import Settings

TRIAL_DAYS = 90
CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
"""C2PA's name of the algorithm for each curve (C2PA 2.2, section 13.2)."""


@dataclass(frozen=True)
class Credentials:
    """A chain of certificates, the signer's first, its key, both as PEM, and C2PA's name of the
    algorithm."""

    chain: bytes
    key: bytes
    algorithm: str


def load_credentials(settings: Settings) -> Credentials | None:
    """What C2PA_CERTIFICATE and C2PA_KEY name; None if neither is set.

    Raises:
        SettingsError: one of them is missing, a file cannot be read, or they do not belong
            together.
    """
    if not (settings.c2pa_certificate or settings.c2pa_key):
        return None
    chain = _read("C2PA_CERTIFICATE", settings.c2pa_certificate)
    private = _read("C2PA_KEY", settings.c2pa_key)
    try:
        certificates = x509.load_pem_x509_certificates(chain)
    except ValueError as error:
        named = f"C2PA_CERTIFICATE={settings.c2pa_certificate}"
        raise SettingsError(f"{named}: not a PEM file of certificates: {error}") from None
    try:
        key = serialization.load_pem_private_key(private, None)
    except (ValueError, TypeError) as error:
        raise SettingsError(
            f"C2PA_KEY={settings.c2pa_key}: not a PEM file of a private key without a password:"
            f" {error}"
        ) from None
    if certificates[0].public_key() != key.public_key():
        raise SettingsError(
            f"C2PA_KEY={settings.c2pa_key} is not the key of the first certificate in"
            f" C2PA_CERTIFICATE={settings.c2pa_certificate}; the signer's comes first, then those"
            " above it"
        )
    return Credentials(chain, private, _algorithm(key, settings.c2pa_key))


def _read(variable: str, name: str) -> bytes:
    if not name:
        raise SettingsError(
            f"{variable} is not set: a signature needs both C2PA_CERTIFICATE and C2PA_KEY, and a"
            " trial neither"
        )
    try:
        return Path(name).expanduser().read_bytes()
    except OSError as error:
        raise SettingsError(f"{variable}={name} cannot be read: {error.strerror}") from None


def _algorithm(key: PrivateKeyTypes, name: str) -> str:
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in CURVES:
        return CURVES[key.curve.name]
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey):
        return "ps256"
    raise SettingsError(
        f"C2PA_KEY={name}: C2PA signs with keys on the curves {', '.join(CURVES)}, Ed25519 or RSA"
    )


def make_trial_credentials() -> Credentials:
    """A signer's certificate under an authority of its own, neither of which anyone trusts: C2PA
    takes no certificate that signs itself."""
    above, own = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    identity = x509.SubjectKeyIdentifier.from_public_key(above.public_key())
    authority = (
        _builder("Atelier trial authority", above)
        .add_extension(x509.BasicConstraints(True, 0), True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), True)
        .add_extension(identity, False)
        .sign(above, hashes.SHA256())
    )
    signer = (
        _builder("Atelier trial signer", own)
        .add_extension(x509.BasicConstraints(False, None), True)
        .add_extension(_usage(digital_signature=True), True)
        # Verifiers ask for this or another listed purpose (C2PA 2.2, section 14.5.1).
        .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.EMAIL_PROTECTION]), False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identity), False
        )
        .sign(above, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    key = own.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Credentials(signer.public_bytes(pem) + authority.public_bytes(pem), key, "es256")


def _builder(name: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    return x509.CertificateBuilder(
        _name("Atelier trial authority"),
        _name(name),
        key.public_key(),
        x509.random_serial_number(),
        now - day,
        now + TRIAL_DAYS * day,
    )


def _name(text: str) -> x509.Name:
    organization = x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "self-made, for trials")
    return x509.Name([organization, x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _usage(**allowed: bool) -> x509.KeyUsage:
    every = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**(dict.fromkeys(every, False) | allowed))
