"""The documents for people: README, docs/ and cache_schema/README."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (
        *sorted(ROOT.glob("*.md")),
        *sorted(ROOT.glob("docs/*.md")),
        ROOT / "cache_schema/README.md",
    )
}
FENCED = re.compile(r"^```.*?^```$", flags=re.M | re.S)


def blocks(text, language):
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.M | re.S)


def commands(text):
    """The commands of ``sh-session`` blocks, in order."""
    return [
        line.removeprefix("$ ")
        for block in blocks(text, "sh-session")
        for line in block.splitlines()
        if line.startswith("$ ")
    ]


def tool_commands(text):
    """The commands in running text that call a tool."""
    spans = re.findall(r"`([^`]+)`", FENCED.sub("", text))
    said = [" ".join(span.split()).removeprefix("OMP_WAIT_POLICY=passive ") for span in spans]
    return [span for span in said if span.startswith("python tools/")]


def anchors(text):
    """The names of the headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", FENCED.sub("", text), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


def links(text):
    """The targets of links and images that are not elsewhere in the net."""
    found = re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", text))
    return [target for target in found if "://" not in target]
