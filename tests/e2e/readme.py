"""The code blocks of the README."""

import re
from pathlib import Path

README = (Path(__file__).parents[2] / "README.md").read_text()


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def block(heading: str, language: str) -> str:
    """The first one below a heading."""
    section = README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return blocks(language, section)[0]
