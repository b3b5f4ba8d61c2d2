"""Parts that all HTML pages share: templates, embedded styles and scripts, and data for scripts."""

import json
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

HERE = Path(__file__).resolve().parent


def load_template(name: str) -> Template:
    """Load a template of this folder; it escapes every text."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)


def embed(*names: str) -> Markup:
    """Return style sheets or scripts of this folder, one after the other."""
    texts = [(HERE / name).read_text(encoding="utf-8") for name in names]
    return Markup("\n".join(texts))  # nosec B704 - texts of this project


def json_for_script(content: dict) -> Markup:
    """Return JSON for a <script> element, without any character that could end the element."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # nosec B704 - nothing in it can end the script any more
