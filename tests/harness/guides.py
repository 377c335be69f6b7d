"""README and guides in both languages, read: headings, code, links."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

from tests.harness.places import DEPLOY, ROOT

DOCS: Final = DEPLOY / "docs"
CHINESE: Final = DOCS / "zh-CN"
# Pages whose Chinese one has another place than zh-CN/ and their own name.
PLACES: Final = {
    ROOT / "README.md": ROOT / "README.zh-CN.md",
    DEPLOY / "sdk" / "README.md": CHINESE / "sdks.md",
}
FENCE: Final = re.compile(r"^(?P<indent> *)```(?P<language>\w*)$")
# A comment of each language that code on the pages is in; strings with these in them do not occur.
COMMENTS: Final = {
    **dict.fromkeys(("sh", "toml", "ini", "yaml"), r"(^|\s+)#.*$"),
    **dict.fromkeys(("js", "php", "java", "go", "csharp"), r"(^|\s+)//.*$"),
    "sql": r"(^|\s+)--.*$",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of code; `mark` is what the HTML comment above it says."""

    language: str
    text: str
    mark: str

    def without_comments(self) -> str:
        """Return the code without what is said to people in it."""
        if self.language == "python":  # whose lines a formatter breaks where a comment is long
            return ast.unparse(ast.parse(self.text))
        pattern = COMMENTS.get(self.language)
        if pattern is None:
            return self.text
        lines = (re.sub(pattern, "", line) for line in self.text.splitlines())
        return "\n".join(line for line in lines if line.strip())


@dataclass(frozen=True)
class Heading:
    """A heading; `slug` is the anchor that GitHub gives it."""

    level: int
    text: str
    slug: str


@dataclass(frozen=True)
class Page:
    """A page in Markdown."""

    path: Path
    blocks: list[Block] = field(default_factory=list)
    headings: list[Heading] = field(default_factory=list)
    prose: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return str(self.path.relative_to(ROOT))

    @property
    def text(self) -> str:
        """Return the whole text."""
        return self.path.read_text()

    @cached_property
    def code(self) -> set[str]:
        """Return what stands between backticks outside of blocks."""
        return set(re.findall(r"`([^`\n]+)`", "\n".join(self.prose)))

    @cached_property
    def links(self) -> list[str]:
        """Return the targets of links and pictures."""
        text = "\n".join(self.prose)
        return re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src(?:set)?)="([^"]+)"', text)

    @property
    def table_rows(self) -> int:
        """Return how many lines belong to tables."""
        return sum(line.lstrip().startswith("|") for line in self.prose)

    def of(self, *languages: str) -> list[Block]:
        """Return the blocks in these languages."""
        return [block for block in self.blocks if block.language in languages]


def slug_of(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def read(path: Path) -> Page:
    """Read a page."""
    page, lines = Page(path), iter(path.read_text().splitlines())
    above = ""
    for line in lines:
        if fence := FENCE.match(line):
            indent = len(fence["indent"])
            code = "\n".join(one[indent:] for one in _until_fence(lines))
            mark = re.fullmatch(r"<!-- (.+) -->", above.strip())
            page.blocks.append(Block(fence["language"], code, mark[1] if mark else ""))
        elif heading := re.match(r"(#+) (.+)$", line):
            text = heading[2]
            page.headings.append(Heading(len(heading[1]), text, slug_of(text)))
            page.prose.append(line)
        else:
            page.prose.append(line)
        above = line
    return page


def _until_fence(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        if line.strip() == "```":
            return
        yield line
    raise AssertionError("a block of code does not end")


ENGLISH: Final = sorted([*PLACES, *DOCS.glob("*.md")])


def counterpart(english: Path) -> Path:
    """Return where the Chinese page is."""
    return PLACES.get(english, CHINESE / english.name)


def pages() -> list[Page]:
    """Return all pages of both languages that are there."""
    paths = {*ENGLISH, *CHINESE.glob("*.md"), *PLACES.values()}
    return [read(path) for path in sorted(paths) if path.exists()]
