"""README and guides say the same in English and Chinese, so that neither falls behind."""

import re
from pathlib import Path

import pytest

from tests.harness.guides import CHINESE, ENGLISH, PLACES, Page, counterpart, read
from tests.harness.places import ROOT


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(params=ENGLISH, ids=name)
def both(request: pytest.FixtureRequest) -> tuple[Page, Page]:
    english = request.param
    return read(english), read(counterpart(english))


def test_no_page_is_in_chinese_only() -> None:
    assert {*CHINESE.glob("*.md"), ROOT / "README.zh-CN.md"} == {
        counterpart(path) for path in ENGLISH
    }


def test_both_have_the_same_sections(both: tuple[Page, Page]) -> None:
    english, chinese = ([heading.level for heading in page.headings] for page in both)
    assert english == chinese


def test_both_show_the_same_code(both: tuple[Page, Page]) -> None:
    english, chinese = both
    assert [(block.language, block.mark) for block in english.blocks] == [
        (block.language, block.mark) for block in chinese.blocks
    ]
    for one, other in zip(english.blocks, chinese.blocks, strict=True):
        if one.language != "text":  # a drawing, with words in it
            assert one.without_comments() == other.without_comments()


def test_both_name_the_same_keys_commands_and_routes(both: tuple[Page, Page]) -> None:
    english, chinese = both
    assert english.code == chinese.code
    assert english.table_rows == chinese.table_rows


def test_both_link_to_the_same_places(both: tuple[Page, Page]) -> None:
    english, chinese = both
    assert _places(english) == _places(chinese)


def test_each_page_leads_to_its_other_language(both: tuple[Page, Page]) -> None:
    for page, other in (both, reversed(both)):
        place = 2 if page.path.parent == ROOT else 4
        links = [read_link(page, target) for target in top_links(page, place)]
        assert other.path in links, f"{page} does not link {other} at its top"


def test_each_page_answers_before_its_first_section(both: tuple[Page, Page]) -> None:
    for page in both:
        _, _, rest = page.text.partition("\n")
        before = rest.partition("\n## ")[0]
        assert len(re.sub(r"\[.*?\]\(.*?\)", "", before).strip()) > 40, page


def top_links(page: Page, lines: int) -> list[str]:
    return re.findall(r"\]\(([^)]+)\)", "\n".join(page.text.splitlines()[:lines]))


def read_link(page: Page, target: str) -> Path:
    return (page.path.parent / target).resolve()


def _places(page: Page) -> set[str]:
    """Where the links of a page lead, whatever the language, but for those to the other one."""
    to_english = {counterpart(path): path for path in [*ENGLISH, *PLACES]}
    found = set()
    for target in page.links:
        where, _, anchor = target.partition("#")
        if ":" in where:
            found.add(target)
            continue
        path = read_link(page, where) if where else page.path
        english = to_english.get(path, path)
        if english == to_english.get(page.path, page.path) and not anchor:
            continue  # this page in its other language
        number = [one.slug for one in read(path).headings].index(anchor) if anchor else ""
        # Pictures have words in them, and so a language.
        found.add(f"{name(english)}#{number}".replace(".zh-CN", "").replace("-zh-CN", ""))
    return found
