"""What is an avatar URL, how openids are packed, which words are said: all pure."""

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.avatars import messages as words
from broker.avatars.errors import KINDS, of_broker, refused, unreachable
from broker.avatars.followers import cursor, read_cursor
from broker.avatars.gallery import initial
from broker.avatars.images import image_type
from broker.avatars.listing import Cursor
from broker.avatars.openids import Openids
from broker.avatars.urls import SIZES, PictureHosts, avatar_url, sized
from broker.client import BrokerError
from broker.http.language import CHINESE, ENGLISH, age, language

QLOGO = "http://thirdwx.qlogo.cn/mmopen/abc"


@pytest.mark.parametrize("given_size", SIZES)
@pytest.mark.parametrize("size", SIZES)
def test_a_size_is_replaced_by_a_size(given_size: int, size: int) -> None:
    assert sized(f"{QLOGO}/{given_size}", size) == f"{QLOGO}/{size}"


@pytest.mark.parametrize(
    "url",
    [
        "https://wx.qlogo.cn/mmhead/PiajxSqBRaEJ",
        f"{QLOGO}/132/",
        f"{QLOGO}/640",
        f"{QLOGO}/0132",
        f"{QLOGO}/00",
        f"{QLOGO}/١٣٢",
        f"{QLOGO}/132.png",
        f"{QLOGO}/a132",
        f"{QLOGO}?x=/132",
        f"{QLOGO}/132;x",
        QLOGO,
    ],
)
def test_a_url_that_ends_in_no_size_stays_as_it_is(url: str) -> None:
    assert all(sized(url, size) == url for size in SIZES)


def test_what_follows_the_path_is_kept() -> None:
    assert sized(f"{QLOGO}/132?v=2#x", 46) == f"{QLOGO}/46?v=2#x"


@pytest.mark.parametrize(
    "url",
    [
        f"{QLOGO}/132",
        "https://wx.qlogo.cn/mmhead/PiajxSqBRaEJ",
        "http://127.0.0.1:8780/mmopen/x/132",
        "HTTPS://WX.QLOGO.CN/x/0",
    ],
)
def test_a_url_of_wechats_is_given_on_as_it_is(url: str) -> None:
    assert avatar_url(url) == url


@pytest.mark.parametrize(
    "value",
    ["", "/0", "/132", None, 0, True, [], {}, " ", "0", "http:", "http://", "http:///x",
     "//wx.qlogo.cn/x", "ftp://x/y", "data:,x", "javascript:alert(1)", "http://x/\n",
     "http://x/ y", 'http://x/"', "http://[::1/x", "http://x:99999/", "http://u@x/", "http://x/é"],
)  # fmt: skip
def test_everything_else_is_withheld(value: object) -> None:
    assert avatar_url(value) is None


@given(st.text())
def test_no_text_at_all_raises_or_becomes_another_url(text: str) -> None:
    assert avatar_url(text) in {None, text}
    if url := avatar_url(text):
        assert PictureHosts().are_public(url) in {True, False}
        assert len(sized(url, 46)) <= len(url) + 2


@pytest.mark.parametrize(
    "url",
    [
        f"{QLOGO}/0",
        "https://wx.qlogo.cn/x",
        "https://wx.qlogo.cn:443/x",
        "http://WX.QLOGO.CN:80/x",
        "http://a.b.qlogo.cn/",
    ],
)
def test_wechats_picture_hosts_are_known(url: str) -> None:
    assert PictureHosts().are_public(url)


@pytest.mark.parametrize(
    "url",
    ["http://qlogo.cn.evil.example/x", "http://evilqlogo.cn/x", "http://qlogo.cn/x",
     "http://evil.example/qlogo.cn", "http://wx.qlogo.cn:8080/x", "https://wx.qlogo.cn:80/x",
     "http://u@wx.qlogo.cn/x", "http://wx.qlogo.cn@evil.example/", "http://127.0.0.1/.qlogo.cn",
     "ftp://wx.qlogo.cn/x", "http://wx.qlogo.cn./x", "http://evil.example#.qlogo.cn",
     "http://evil.example?.qlogo.cn", "http://evil.example\\.qlogo.cn/"],
)  # fmt: skip
def test_nothing_else_is_one_of_them(url: str) -> None:
    assert not PictureHosts().are_public(url) or avatar_url(url) is None


@given(
    st.lists(st.text(string.ascii_letters + "_-", min_size=1, max_size=40), unique=True),
    st.integers(0, 50),
    st.integers(0, 50),
)
def test_packed_openids_come_out_as_they_went_in(openids: list[str], start: int, stop: int) -> None:
    roll = Openids(openids)
    assert len(roll) == len(openids)
    assert roll.slice(start, stop) == openids[start:stop]
    assert [roll.find(openid) for openid in openids] == list(range(len(openids)))
    assert roll.find("0") is None
    assert roll.find("") is None


def test_a_hundred_thousand_openids_take_three_megabytes() -> None:
    roll = Openids([f"o{number:027}" for number in range(100_000)])
    assert len(roll._packed) + len(roll._starts) * roll._starts.itemsize < 3_400_000


@pytest.mark.parametrize("place", [Cursor(0), Cursor(60), Cursor(100, "oabc-_XYZ")])
def test_a_cursor_comes_back_as_the_place_it_named(place: Cursor) -> None:
    assert read_cursor(cursor(place)) == place


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "-1",
        "1.",
        ".a",
        "1.a b",
        "1.a.b",
        "1" * 10,
        "١",
        "1.\n",
        "1\n",
        "../1",
        "1." + "a" * 65,
    ],
)
def test_what_is_no_cursor_names_no_place(text: str) -> None:
    assert read_cursor(text) is None


@pytest.mark.parametrize(
    ("accept", "lang"),
    [
        ("", "en"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh-CN"),
        ("en-GB,en;q=0.9,zh;q=0.8", "en"),
        ("zh", "zh-CN"),
        ("zh-Hant-TW", "zh-CN"),
        ("de-DE,zh;q=0.3", "zh-CN"),
        ("fr", "en"),
        ("en;q=0,zh;q=0.1", "zh-CN"),
        ("en;q=0.1, zh;q=0.2", "zh-CN"),
        ("zh;q=0", "en"),
        ("*", "en"),
        (";;;,q=1,zh;q=x", "en"),
        ("," * 10_000 + "zh", "en"),
    ],
)
def test_the_language_is_the_one_asked_for_first(accept: str, lang: str) -> None:
    assert language(accept) == lang


def test_both_languages_say_the_same_things() -> None:
    for texts in (words.PAGE, words.TROUBLES, words.WHY):
        english, chinese = texts[ENGLISH], texts[CHINESE]
        assert english.keys() == chinese.keys()
        for key, text in english.items():
            if key not in {"withheld_one", "count_one", "upstream-unavailable"}:
                assert set(re.findall(r"{[\w:]+}", text)) == set(
                    re.findall(r"{[\w:]+}", chinese[key])
                ), key
    assert words.TROUBLES[ENGLISH].keys() == KINDS.keys()


@pytest.mark.parametrize("lang", [ENGLISH, CHINESE])
def test_every_trouble_can_be_said(lang: str) -> None:
    troubles = [
        refused({"errmsg": "x"}, errcode, lambda: 0.0)
        for errcode in (48001, 45009, 40164, 61004, 45011, -1, 40001, 12345)
    ]
    troubles += [unreachable(why, 5) for why in words.WHY[lang]]
    troubles += [
        of_broker(BrokerError(code, "{why}"), "b")
        for code in ("unreachable", "starting", "invalid-key", "upstream-refused")
    ]
    for trouble in troubles:
        said = words.sentence(trouble.code, trouble.facts, lang)
        assert said[-1] in ".。）)}"
        assert not re.search(r"{(?!why})", said)


@pytest.mark.parametrize(
    ("seconds", "english", "chinese"),
    [
        (0.4, "0 s", "0 秒"),
        (61, "1 minute", "1 分钟"),
        (7300, "2 hours", "2 小时"),
        (86_400, "1 day", "1 天"),
        (2e6, "23 days", "23 天"),
    ],
)
def test_an_age_is_said_in_its_largest_unit(seconds: float, english: str, chinese: str) -> None:
    assert (age(seconds, ENGLISH), age(seconds, CHINESE)) == (english, chinese)


@pytest.mark.parametrize(
    ("name", "letter"),
    [("mia", "M"), ("小林", "小"), ("Ольга", "О"), ("✨星", ""), ("", ""), ("3T", "3"), (" x", "")],
)
def test_a_name_is_stood_for_by_its_first_letter_where_it_has_one(name: str, letter: str) -> None:
    assert initial(name) == letter


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"GIF89a", "image/gif"),
        (b"RIFF....WEBPVP8", "image/webp"),
        (b"RIFF....WAVE", None),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", None),
        (b"<html>", None),
        (b"", None),
    ],
)
def test_a_picture_is_what_its_bytes_say(body: bytes, kind: str | None) -> None:
    assert image_type(body) == kind
