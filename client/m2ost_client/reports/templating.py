"""Pages that are one file: their style, script and pictures inside, and nothing fetched."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup


def render(page: str, **values: Any) -> str:
    """Fill the template ``<page>.html`` and put ``style.css`` and ``<page>.js`` into it.

    The page's content security policy lets that one style and that one script act, and pictures in ``data:`` addresses
    show; a browser refuses everything else, so that no slide's name can run and no request leaves the page.

    Parameters
    ----------
    page : str
    **values
        The template's variables. Escaped; for a script's data use the filter ``tojson``.
    """
    style, script = _asset("style.css"), _asset(f"{page}.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        _environment()
        .get_template(f"{page}.html")
        .render(policy=policy, style=Markup(style), script=Markup(script), **values)
    )


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _asset(name: str) -> str:
    return (files(__package__) / "templates" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
