"""`atelier warm`: prompts of growing length against any OpenAI-compatible server."""

from __future__ import annotations

import typer

from atelier.bench.warming import WarmTarget
from atelier.errors import SettingsError


def run(endpoint: WarmTarget, prompt_tokens: str, output_tokens: int, wait: float) -> None:
    """Wait if asked to, then warm, a line a prompt."""
    lengths = lengths_of(prompt_tokens)
    if wait:
        endpoint.wait(wait)
    for done in endpoint.warm(lengths, output_tokens):
        told = f"{done.tokens} tokens" if done.tokens else done.refused or "no usage"
        typer.echo(f"{done.wanted} tokens asked: {told}, {done.seconds:.2f} s")


def lengths_of(text: str) -> list[int]:
    """Prompt lengths from `50,500,5000`.

    Raises:
        SettingsError: one is no positive number.
    """
    lengths = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if not part.isdigit() or int(part) < 1:
            raise SettingsError(f"--prompt-tokens {part!r} is no length: write numbers such as 500")
        lengths.append(int(part))
    if not lengths:
        raise SettingsError("--prompt-tokens is empty: write lengths such as 50,500,5000")
    return lengths
