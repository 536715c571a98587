"""What a picture says of its origin, and the XMP packet that says it.

Properties are those of the IPTC Photo Metadata Standard 2025.1 (DigitalSourceType, AISystemUsed,
AISystemVersionUsed, AIPromptInformation) and XMP's own CreatorTool. The seed has no standard
property and stands in a namespace of ours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from atelier import __version__

SOFTWARE = "Atelier"
VOCABULARY = "http://cv.iptc.org/newscodes/digitalsourcetype/"
"""IPTC's terms of how a picture came to be."""

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
XMP = "http://ns.adobe.com/xap/1.0/"
IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
TERMS = "http://purl.org/dc/terms/"
OWN = "urn:atelier:picture/"

FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that no XML 1.0 document can hold."""


MOST_PROMPT = 10_000
"""Characters: a JPEG's packet may have 64 KiB, and one character may take five bytes."""


@dataclass(frozen=True)
class Marks:
    """What is said of one picture. `edited` is true where others were given; `prompt` is there only
    if a setting asks for it, and has at most MOST_PROMPT characters."""

    model: str
    seed: int
    edited: bool = False
    prompt: str | None = None

    @property
    def source_type(self) -> str:
        """IPTC's term, as its URI."""
        kind = "compositeWithTrainedAlgorithmicMedia" if self.edited else "trainedAlgorithmicMedia"
        return VOCABULARY + kind


@dataclass(frozen=True)
class Ingredient:
    """An encoded picture that went into another, and what it is called there."""

    title: str
    data: bytes


def xmp_packet(marks: Marks) -> bytes:
    """The packet for a picture's XMP field, in UTF-8."""
    properties = {
        "xmp:CreatorTool": f"{SOFTWARE} {__version__}",
        "Iptc4xmpExt:DigitalSourceType": marks.source_type,
        "Iptc4xmpExt:AISystemUsed": marks.model,
        "Iptc4xmpExt:AISystemVersionUsed": f"{SOFTWARE} {__version__}",
        "atelier:Seed": str(marks.seed),
    }
    if marks.prompt is not None:
        properties["Iptc4xmpExt:AIPromptInformation"] = marks.prompt
    inside = "".join(f"<{name}>{_text(value)}</{name}>" for name, value in properties.items())
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}">'
        f'<rdf:Description rdf:about="" xmlns:xmp="{XMP}" xmlns:Iptc4xmpExt="{IPTC}"'
        f' xmlns:atelier="{OWN}">{inside}</rdf:Description></rdf:RDF></x:xmpmeta>'
        '<?xpacket end="r"?>'
    ).encode()


def _text(value: str) -> str:
    return escape(FORBIDDEN.sub("\ufffd", value))


READ = {
    "source type": f"{{{IPTC}}}DigitalSourceType",
    "software": f"{{{XMP}}}CreatorTool",
    "model": f"{{{IPTC}}}AISystemUsed",
    "seed": f"{{{OWN}}}Seed",
    "prompt": f"{{{IPTC}}}AIPromptInformation",
    "remote credentials": f"{{{TERMS}}}provenance",
}
"""What is read of a packet, by the name under which it is shown."""


def read_packet(packet: bytes) -> dict[str, str]:
    """The properties of `READ` that a packet has, whoever wrote it.

    Raises:
        ValueError: it is not XML.
    """
    try:
        root = ElementTree.fromstring(packet.rstrip(b"\0"))
    except ElementTree.ParseError as error:
        raise ValueError(f"the XMP packet is not XML: {error}") from None
    found = {}
    for description in root.iter(f"{{{RDF}}}Description"):
        for name, tag in READ.items():
            # A simple property is an element or an attribute (XMP specification, part 1, 7.9).
            element = description.find(tag)
            value = description.get(tag) if element is None else "".join(element.itertext())
            if value:
                found[name] = value.strip()
    return found
