"""The texts: short enough to be read, and no link that leads nowhere.

In: README.md, ARCHITECTURE.md, docs, results.  Out: failures that name the file and the link.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("results/*/*.md")])


def test_the_readme_is_read_in_two_minutes() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 600
    commands = re.findall(r"^(make \w+)", text, re.MULTILINE)
    assert commands[:2] == ["make reproduce", "make test"]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    links = [*re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", text), *re.findall(r'<img src="([^"]+)"', text)]
    broken = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert not broken


@pytest.mark.parametrize("folder", sorted(ROOT.glob("results/*/")), ids=lambda folder: folder.name)
def test_results_say_their_command_and_what_to_distrust(folder: Path) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "```\n" in text and text.startswith("# ")
    assert "**Distrust**" in text or folder.name == "first-light"
