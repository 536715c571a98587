"""C2PA manifests: signed statements inside a picture of what made it, and of what."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Sequence
from typing import Any

import c2pa

from atelier import __version__
from atelier.errors import GenerationFailed, SettingsError
from atelier.provenance.credentials import (
    TRIAL_DAYS,
    Credentials,
    load_credentials,
    make_trial_credentials,
)
from atelier.provenance.marks import SOFTWARE, Ingredient, Marks
from atelier.settings import Settings

log = logging.getLogger(__name__)

# Pictures come from strangers: nothing that one names is fetched. Thumbnails would double what is
# sent, and what was signed is read again by those whom it concerns.
OPTIONS = {
    "verify": {
        "remote_manifest_fetch": False,
        "ocsp_fetch": False,
        "verify_after_sign": False,
    },
    "builder": {"thumbnail": {"enabled": False}},
}
PROOF = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c49444154789c63606060000000040001f61738550000000049454e44ae426082"
)
"""A PNG of one black pixel, which is signed at start to see that the certificate serves."""

MEDIA_TYPES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}


class ManifestSigner:
    """Signs pictures with one certificate; for any thread."""

    def __init__(self, settings: Settings) -> None:
        """
        Raises:
            SettingsError: certificate or key cannot be used, or no verifier would take what they
                sign.
        """
        given = load_credentials(settings)
        if given is None:
            log.warning(
                "PROVENANCE=c2pa without C2PA_CERTIFICATE: pictures are signed with a self-made"
                " certificate, for trials: nobody trusts it, and it ends after %d days",
                TRIAL_DAYS,
            )
        self._credentials = given or make_trial_credentials()
        self._context = c2pa.Context.from_dict(OPTIONS)
        self._signer = _signer(self._credentials, settings.c2pa_certificate)
        self._check(settings.c2pa_certificate)

    def sign(
        self, data: bytes, media_type: str, marks: Marks, ingredients: Sequence[Ingredient] = ()
    ) -> bytes:
        """The encoded picture with a manifest in it.

        Args:
            ingredients: the pictures that it was drawn by. Of an edited one the first became this
                one. Manifests in them are kept.

        Raises:
            GenerationFailed: the library cannot sign it.
        """
        signed = io.BytesIO()
        try:
            with self._builder(media_type, marks, ingredients) as builder:
                builder.sign(self._signer, media_type, io.BytesIO(data), signed)
        except c2pa.C2paError as error:
            raise GenerationFailed(f"the picture cannot be signed: {error}") from None
        return signed.getvalue()

    def _builder(
        self, media_type: str, marks: Marks, ingredients: Sequence[Ingredient]
    ) -> c2pa.Builder:
        """With every ingredient; one that the library cannot read, such as a BMP, is named and not
        looked into."""
        told = [_told(index, one, marks.edited) for index, one in enumerate(ingredients)]
        unread: set[int] = set()
        while True:
            bare = [told[index] for index in sorted(unread)]
            described = _described(media_type, marks, len(told)) | {"ingredients": bare}
            builder = c2pa.Builder(described, context=self._context)
            for index, one in enumerate(ingredients):
                if index in unread:
                    continue
                try:
                    kind = _media_type(one.data)
                    builder.add_ingredient(told[index], kind, io.BytesIO(one.data))
                except c2pa.C2paError:
                    builder.close()
                    unread.add(index)
                    break
            else:
                return builder

    def _check(self, name: str) -> None:
        """See that a verifier which trusted the certificate would take what it signs."""
        try:
            signed = self.sign(PROOF, "image/png", Marks("", 0))
        except GenerationFailed as error:
            raise SettingsError(f"C2PA_CERTIFICATE={name} cannot be used: {error}") from None
        with c2pa.Reader("image/png", io.BytesIO(signed), context=self._context) as reader:
            faults = [
                f"{one['code']} ({one.get('explanation', '')})"
                for one in json.loads(reader.json()).get("validation_status", [])
                if one["code"] != "signingCredential.untrusted"
            ]
        if faults:
            raise SettingsError(
                f"C2PA_CERTIFICATE={name} makes signatures that verifiers refuse:"
                f" {'; '.join(faults)}"
            )


def _signer(credentials: Credentials, name: str) -> c2pa.Signer:
    info = c2pa.C2paSignerInfo(
        credentials.algorithm.encode(), credentials.chain, credentials.key, None
    )
    try:
        return c2pa.Signer.from_info(info)
    except c2pa.C2paError as error:
        raise SettingsError(f"C2PA_CERTIFICATE={name} cannot be used: {error}") from None


def _described(media_type: str, marks: Marks, ingredients: int) -> dict[str, Any]:
    """The manifest: what was done, by what (C2PA 2.2, section 18.14)."""
    software = {"name": SOFTWARE, "version": __version__}
    parameters: dict[str, Any] = {
        "urn.atelier.model": marks.model,
        "urn.atelier.seed": str(marks.seed),
    }
    if marks.prompt is not None:
        parameters["urn.atelier.prompt"] = marks.prompt
    made: dict[str, Any] = {
        "action": "c2pa.edited" if marks.edited else "c2pa.created",
        "digitalSourceType": marks.source_type,
        "softwareAgent": software,
        "parameters": parameters,
    }
    actions = [made]
    if marks.edited:
        opened = {"action": "c2pa.opened", "parameters": {"ingredientIds": [_label(0)]}}
        actions = [opened, made]
    if beside := [_label(index) for index in range(int(marks.edited), ingredients)]:
        parameters["ingredientIds"] = beside
    return {
        "claim_generator_info": [software],
        "title": "picture",
        "format": media_type,
        # stated by the signer, not gathered from elsewhere
        "assertions": [{"label": "c2pa.actions.v2", "created": True, "data": {"actions": actions}}],
    }


def _told(index: int, one: Ingredient, edited: bool) -> dict[str, str]:
    """An ingredient; the first of an edit is what was edited."""
    relation = "parentOf" if edited and not index else "inputTo"
    name = _label(index)
    return {"title": one.title, "relationship": relation, "label": name, "instance_id": name}


def _label(index: int) -> str:
    return f"input{index + 1}"


def _media_type(data: bytes) -> str:
    if data[:4] == b"RIFF":
        return "image/webp"
    return next(
        (kind for magic, kind in MEDIA_TYPES.items() if data.startswith(magic)), "image/bmp"
    )
