"""What the marks of a picture say, whether its signature holds, and what could not be verified.
Serves `atelier inspect`; the signature alone needs the extra `provenance`."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atelier.errors import InvalidRequest
from atelier.provenance.containers import FoundMarks, find_marks
from atelier.provenance.marks import VOCABULARY, read_packet

HOLDS, UNREADABLE, NO_MARKS, BROKEN, UNVERIFIED = 0, 1, 3, 4, 5
"""Exit codes. 2 is what a command line with a wrong option ends with."""

UNTRUSTED = "signingCredential.untrusted"
MOST_SHOWN = 2000
INSTALL = "pip install 'atelier[provenance]'"

WORDS = {
    f"{VOCABULARY}trainedAlgorithmicMedia": "made by a trained model",
    f"{VOCABULARY}compositeWithTrainedAlgorithmicMedia": "edited with a trained model",
}


@dataclass
class MarksReport:
    """Lines about one picture, and the exit code that they come to. `trusting` says that anchors
    were given, which the signer is measured by."""

    trusting: bool
    code: int = NO_MARKS
    metadata: list[str] = field(default_factory=list)
    credentials: list[str] = field(default_factory=list)
    unverified: list[str] = field(default_factory=list)

    def text(self) -> str:
        """For a terminal."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        for title, lines in (
            ("metadata", self.metadata),
            ("content credentials", self.credentials),
            ("not verified", self.unverified),
        ):
            if lines:
                yield title
                yield from (f"  {_plain(line)}" for line in lines)


def _plain(line: str) -> str:
    """Without what would steer a terminal or begin a line of its own, and no longer than a page:
    most of it was written by whoever made the file."""
    safe = "".join(letter if letter.isprintable() else "\ufffd" for letter in line)
    return safe if len(safe) <= MOST_SHOWN else f"{safe[:MOST_SHOWN]}..."


def inspect(path: Path, anchors: Path | None = None) -> MarksReport:
    """Look at a picture.

    Args:
        anchors: PEM file of the certificates that a signer must come from.

    Raises:
        InvalidRequest: a file cannot be read, or the first is no picture.
    """
    data = _read(path)
    try:
        marks = find_marks(data)
    except ValueError as error:
        raise InvalidRequest(f"{path}: {error}") from None
    trusted = _read(anchors).decode("ascii", "replace") if anchors else None
    report = MarksReport(trusted is not None)
    if marks.xmp is not None:
        _read_metadata(marks.xmp, report)
    if marks.c2pa:
        _read_credentials(data, marks, trusted, report)
    elif report.metadata:
        report.unverified.append(
            "the metadata: it is not signed; anyone can write it, change it or take it away"
        )
    if report.code == NO_MARKS and not report.metadata:
        report.metadata.append("none: this says nothing about where the picture comes from")
    return report


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{path}: cannot be read: {error.strerror}") from None


def _read_metadata(packet: bytes, report: MarksReport) -> None:
    try:
        properties = read_packet(packet)
    except ValueError as error:
        report.unverified.append(f"the metadata: {error}")
        return
    if remote := properties.pop("remote credentials", None):
        report.unverified.append(f"credentials kept elsewhere: {remote} was not fetched")
    if properties:
        report.code = HOLDS
        report.metadata += _columns(_explained(properties))


def _explained(properties: dict[str, str]) -> dict[str, str]:
    source = properties.get("source type")
    return properties | ({"source type": f"{WORDS.get(source, 'see')}: {source}"} if source else {})


def _columns(pairs: dict[str, str]) -> list[str]:
    return [f"{name:14} {value}" for name, value in pairs.items()]


def _read_credentials(
    data: bytes, marks: FoundMarks, anchors: str | None, report: MarksReport
) -> None:
    try:
        import c2pa
    except ModuleNotFoundError:
        report.code = UNVERIFIED
        report.credentials.append("a C2PA manifest is in the picture")
        report.unverified.append(f"its signature: that needs the C2PA library: {INSTALL}")
        return
    options: dict[str, Any] = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}
    if anchors is not None:
        options["trust"] = {"trust_anchors": anchors}
    try:
        context = c2pa.Context.from_dict(options)
    except c2pa.C2paError as error:
        raise InvalidRequest(f"--trust: the anchors cannot be used: {error}") from None
    try:
        with c2pa.Reader(marks.media_type, io.BytesIO(data), context=context) as reader:
            _judge(json.loads(reader.json()), report)
    except c2pa.C2paError as error:
        report.code = BROKEN
        report.credentials.append(f"the C2PA manifest cannot be read: {error}")


def _judge(store: dict[str, Any], report: MarksReport) -> None:
    """Take in what the library found: every status that is a failure, but for trust, which is the
    reader's own decision."""
    active = store["manifests"][store["active_manifest"]]
    report.credentials += _columns(_told(active))
    failures = [one for one in store.get("validation_status", []) if one["code"] != UNTRUSTED]
    trusted = not any(one["code"] == UNTRUSTED for one in store.get("validation_status", []))
    signer = active.get("signature_info", {})
    name = f"{signer.get('common_name', '?')} ({signer.get('issuer', '?')})"
    if failures:
        report.code = BROKEN
        reasons = "; ".join(f"{one['code']}: {one.get('explanation', '')}" for one in failures)
        report.credentials.append(f"{'signature':14} DOES NOT HOLD: {reasons}")
        return
    report.code = HOLDS
    report.credentials.append(f"{'signature':14} holds: the file is as {name} signed it")
    if report.trusting and trusted:
        report.credentials.append(f"{'signer':14} comes from one of the given anchors")
    elif report.trusting:
        report.code = BROKEN
        report.credentials.append(f"{'signer':14} DOES NOT COME from any of the given anchors")
    else:
        report.unverified.append(
            f"who {name} is: anyone can make a certificate with that name; give the authorities"
            " that you trust with --trust FILE"
        )
    if not signer.get("time"):
        report.unverified.append("when it was signed: there is no trusted time stamp")


def _told(manifest: dict[str, Any]) -> dict[str, str]:
    """What the manifest states."""
    made = [
        action
        for assertion in manifest.get("assertions", [])
        if assertion["label"].startswith("c2pa.actions")
        for action in assertion["data"].get("actions", [])
    ]
    generators = manifest.get("claim_generator_info") or [{}]
    told = {
        "software": " ".join(
            str(generators[0][key]) for key in ("name", "version") if key in generators[0]
        ),
        "actions": ", ".join(str(action.get("action")) for action in made),
    }
    for action in made:
        if source := action.get("digitalSourceType"):
            told |= _explained({"source type": source})
        for name, value in (action.get("parameters") or {}).items():
            if name.startswith("urn.atelier."):
                told[name.removeprefix("urn.atelier.")] = str(value)
    if ingredients := manifest.get("ingredients"):
        told["ingredients"] = ", ".join(map(_ingredient, ingredients))
    return {name: value for name, value in told.items() if value}


def _ingredient(one: dict[str, Any]) -> str:
    what = f"{one.get('title', 'untitled')} ({one.get('format', 'unknown format')})"
    return f"{what} with credentials of its own" if one.get("active_manifest") else what
