"""What people read before they agree, and what they are told afterwards; in Chinese and English.

The text that was agreed to is kept as proof, under a version that is a hash of it: another
operator, purpose or time is another text.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Final, NamedTuple

from broker.config.settings import ConsentSettings
from broker.http.language import CHINESE, ENGLISH

VERSION_LENGTH: Final = 12


class Outcome(NamedTuple):
    """A page that says what came of it: HTTP status, title and sentence by language."""

    status: int
    said: Mapping[str, tuple[str, str]]


_QUESTION: Final[Mapping[str, Mapping[str, str]]] = {
    CHINESE: {
        "title": "显示您的微信头像，您同意吗？",
        "who": "谁在征求同意",
        "what": "会得到什么",
        "what_text": (
            "只有您的微信头像（图片地址）和识别您的 OpenID。"
            "不保存昵称、性别、地区、UnionID，也不保存图片本身。"
        ),
        "why": "用来做什么",
        "how_long": "保存多久",
        "how_long_text": "自您同意之日起 {days} 天，到期自动删除。",
        "take_back": "如何撤回",
        "take_back_text": (
            "随时可以撤回：点击本页下方的“撤回同意并删除”，或在微信中取消授权，"
            "或联系我们。撤回后立即删除，撤回前的使用仍然有效。"
        ),
        "rights": "您的权利",
        "rights_text": (
            "您可以查看、复制、更正或删除关于您的信息，请通过以下方式联系我们：{contact}。"
            "未满 14 周岁请由父母或监护人决定。"
        ),
        "voluntary": "是否同意完全自愿。不同意不会影响任何其他服务。",
    },
    ENGLISH: {
        "title": "May your WeChat avatar be shown?",
        "who": "Who asks",
        "what": "What is taken",
        "what_text": (
            "Only the address of your WeChat avatar, and the OpenID that tells it is yours. No"
            " nickname, sex, region or UnionID is kept, nor the picture itself."
        ),
        "why": "What for",
        "how_long": "For how long",
        "how_long_text": "For {days} days from your consent; then it is deleted by itself.",
        "take_back": "How to take it back",
        "take_back_text": (
            "At any time: press “Take it back and delete” below, or withdraw the authorisation in"
            " WeChat, or tell us. It is deleted at once; what was done before stays lawful."
        ),
        "rights": "Your rights",
        "rights_text": (
            "You may look at, copy, correct or delete what is kept of you: {contact}. If you are"
            " under 14, a parent or guardian decides."
        ),
        "voluntary": "This is voluntary. Nothing else depends on it.",
    },
}
BUTTONS: Final[Mapping[str, Mapping[str, str]]] = {
    CHINESE: {
        "agree": "同意并前往微信确认",
        "withdraw": "撤回同意并删除",
        "withdraw_why": "曾经同意过？",
        "back": "返回说明页",
        "stale": "此页面已打开过久，或浏览器没有保存 Cookie。请重新阅读后再点击。",
    },
    ENGLISH: {
        "agree": "I agree: confirm in WeChat",
        "withdraw": "Take it back and delete",
        "withdraw_why": "Have you agreed before?",
        "back": "Back to the page that explains",
        "stale": (
            "The page was open for too long, or the browser keeps no cookie. Please read it again"
            " before you press the button."
        ),
    },
}
OUTCOMES: Final[Mapping[str, Outcome]] = {
    "kept": Outcome(
        200,
        {
            CHINESE: ("谢谢，您的头像会显示到 {until}", "在此之前，您随时可以在说明页撤回同意。"),
            ENGLISH: (
                "Thank you. Your avatar is shown until {until}",
                "Until then you can take your consent back on the page that explains.",
            ),
        },
    ),
    "refused": Outcome(
        200,
        {
            CHINESE: ("您没有同意", "没有保存任何信息，也没有任何改变。"),
            ENGLISH: ("You did not agree", "Nothing was stored, and nothing has changed."),
        },
    ),
    "not-withdrawn": Outcome(
        200,
        {
            CHINESE: ("没有撤回", "微信没有确认您是谁，因此没有任何改变。请重新操作。"),
            ENGLISH: (
                "Nothing was taken back",
                "WeChat did not say who you are, so nothing has changed. Please begin again.",
            ),
        },
    ),
    "snapshot": Outcome(
        200,
        {
            CHINESE: (
                "微信给出的是快照页的虚拟身份",
                "没有保存任何信息。请在微信页面底部点击“使用完整服务”，然后重新操作。",
            ),
            ENGLISH: (
                "WeChat showed a snapshot, with an avatar that is not yours",
                (
                    "Nothing was stored. Press “使用完整服务” (use the full service) at the bottom"
                    " of the page in WeChat, then begin again."
                ),
            ),
        },
    ),
    "no-picture": Outcome(
        200,
        {
            CHINESE: ("微信没有给出可以显示的头像", "没有保存任何信息。请先在微信中设置头像。"),
            ENGLISH: (
                "WeChat gave no avatar that can be shown",
                "Nothing was stored. Set an avatar in WeChat first.",
            ),
        },
    ),
    "state": Outcome(
        400,
        {
            CHINESE: (
                "这次确认已失效",
                (
                    "它可能已超过十分钟、已用过一次，或者不是在这个浏览器里开始的。"
                    "没有任何改变，请重新开始。"
                ),
            ),
            ENGLISH: (
                "This confirmation is not good any more",
                (
                    "It is older than ten minutes, was used before, or was begun in another"
                    " browser. Nothing has changed. Please begin again."
                ),
            ),
        },
    ),
    "used": Outcome(
        400,
        {
            CHINESE: ("微信的确认码已失效", "没有任何改变，请重新开始。"),
            ENGLISH: (
                "WeChat’s code is not good any more",
                "Nothing has changed. Please begin again.",
            ),
        },
    ),
    "busy": Outcome(
        503,
        {
            CHINESE: ("现在人太多", "没有任何改变，请一分钟后再试。"),
            ENGLISH: (
                "Too many people are here just now",
                "Nothing has changed. Please try again in a minute.",
            ),
        },
    ),
    "unavailable": Outcome(
        502,
        {
            CHINESE: ("暂时无法向微信确认", "没有任何改变，请稍后再试。"),
            ENGLISH: (
                "WeChat cannot be asked just now",
                "Nothing has changed. Please try again later.",
            ),
        },
    ),
    "not-kept": Outcome(
        503,
        {
            CHINESE: ("您的同意没有保存成功", "服务器暂时无法保存，您的头像不会显示。请稍后再试。"),
            ENGLISH: (
                "Your consent was not kept",
                (
                    "The server cannot store it now, so your avatar is not shown. Please try again"
                    " later."
                ),
            ),
        },
    ),
    "withdrawn": Outcome(
        200,
        {
            CHINESE: ("已撤回并删除", "关于您的信息已全部删除，您的头像不再显示。"),
            ENGLISH: (
                "Taken back and deleted",
                "What was kept of you is deleted, and your avatar is not shown any more.",
            ),
        },
    ),
    "nothing-kept": Outcome(
        200,
        {
            CHINESE: ("没有保存您的任何信息", "因此没有需要删除的内容。"),
            ENGLISH: ("Nothing is kept of you", "So there was nothing to delete."),
        },
    ),
    "not-deleted": Outcome(
        503,
        {
            CHINESE: (
                "已撤回，稍后删除",
                "您的头像不再显示。服务器暂时无法写入，恢复后会立即删除；您也可以稍后再试。",
            ),
            ENGLISH: (
                "Taken back; to be deleted soon",
                (
                    "Your avatar is not shown any more. The server cannot write just now and"
                    " deletes what it keeps as soon as it can; you may also try again later."
                ),
            ),
        },
    ),
}


class Section(NamedTuple):
    """A heading and what is said below it."""

    heading: str
    text: str


class ConsentText(NamedTuple):
    """What one language's page says before anybody agrees."""

    title: str
    sections: tuple[Section, ...]
    voluntary: str


class ConsentTexts:
    """The page's texts by language, their `version`, and all of it as JSON for the proof."""

    def __init__(self, settings: ConsentSettings) -> None:
        self.by_language = {lang: _text(settings, lang) for lang in (CHINESE, ENGLISH)}
        shown = {
            lang: {"title": it.title, "sections": it.sections, "voluntary": it.voluntary}
            | {"button": BUTTONS[lang]["agree"]}
            for lang, it in self.by_language.items()
        }
        self.proof = json.dumps(shown, ensure_ascii=False)
        self.version = hashlib.sha256(self.proof.encode()).hexdigest()[:VERSION_LENGTH]


def _text(settings: ConsentSettings, lang: str) -> ConsentText:
    words = _QUESTION[lang]
    operator = settings.operator_en if lang == ENGLISH else settings.operator
    purpose = settings.purpose_en if lang == ENGLISH else settings.purpose
    return ConsentText(
        words["title"],
        (
            Section(words["who"], operator),
            Section(words["what"], words["what_text"]),
            Section(words["why"], purpose),
            Section(words["how_long"], words["how_long_text"].format(days=settings.keep_days)),
            Section(words["take_back"], words["take_back_text"]),
            Section(words["rights"], words["rights_text"].format(contact=settings.contact)),
        ),
        words["voluntary"],
    )
