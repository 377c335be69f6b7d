"""What is said to people, in English and Chinese. The API's errors are the English sentences."""

from collections.abc import Mapping
from typing import Final

from broker.http.language import CHINESE, ENGLISH

TROUBLES: Final[Mapping[str, Mapping[str, str]]] = {
    ENGLISH: {
        "account-not-verified": (
            "WeChat lists followers of verified accounts only (48001): verify this account at"
            " mp.weixin.qq.com, under Settings, Account details. Nothing has to be restarted"
            " afterwards."
        ),
        "quota-exhausted": (
            "This account's calls to WeChat are spent for today (45009); they come back at"
            " midnight, Beijing time. See which other program lists followers: WeChat allows 500"
            " lists a day to all of them together."
        ),
        "ip-not-allowed": (
            "WeChat takes no calls from this server's address{ip} ({errcode}): add it to the IP"
            " whitelist at mp.weixin.qq.com, under Settings and development, Basic configuration."
            " It takes effect within minutes."
        ),
        "token-refused": (
            "WeChat refuses the token ({errcode}), and the broker has no better one yet. If this"
            " lasts, another program may be fetching tokens with the same AppSecret: `token-broker"
            " status` tells."
        ),
        "slow-down": "Too many calls to WeChat within a minute (45011). Try again in a minute.",
        "upstream-refused": (
            "WeChat refused the call with errcode {errcode}. Its meaning is in WeChat's list of"
            " return codes."
        ),
        "upstream-unavailable": (
            "WeChat cannot be asked just now: {why}. It is tried again by itself."
        ),
        "broker-unavailable": (
            "The token broker at {broker} does not answer: start it with `token-broker serve`, or"
            " look at its log."
        ),
        "no-token": "The token broker has no token to give ({broker_code}): {why}",
        "broker-refused": (
            "The token broker does not let the companion in ({broker_code}): {why} See `app` and"
            " `key_file` in [avatars]."
        ),
        "budget-spent": (
            "The companion keeps to 400 lists of followers a day, and those are spent. The next one"
            " comes soon."
        ),
        "image-unavailable": "The picture could not be fetched: {why}.",
    },
    CHINESE: {
        "account-not-verified": (
            "微信只允许已认证的公众号获取关注者列表（48001）。"
            "请登录 mp.weixin.qq.com，在“设置”→“账号详情”中完成认证，之后无需重启。"
        ),
        "quota-exhausted": (
            "该账号今天的微信接口调用次数已用完（45009），北京时间零点恢复。"
            "请检查是否有其他程序也在拉取关注者列表：每天合计只有 500 次。"
        ),
        "ip-not-allowed": (
            "微信拒绝来自本服务器地址{ip}的调用（{errcode}）。"
            "请登录 mp.weixin.qq.com，在“设置与开发”→“基本配置”中将其加入 IP 白名单，"
            "几分钟内生效。"
        ),
        "token-refused": (
            "微信拒绝了 access_token（{errcode}），令牌服务暂时没有更新的令牌。"
            "如果持续出现，可能有其他程序在用同一个 AppSecret 获取令牌，可用 token-broker"
            " status 查看。"
        ),
        "slow-down": "一分钟内调用微信接口过于频繁（45011），请一分钟后再试。",
        "upstream-refused": "微信拒绝了调用，错误码 {errcode}，含义见微信的返回码说明。",
        "upstream-unavailable": "暂时无法访问微信（{why}），系统会自动重试。",
        "broker-unavailable": (
            "令牌服务 {broker} 没有响应：请用 token-broker serve 启动它，或查看它的日志。"
        ),
        "no-token": "令牌服务暂时没有可用的令牌（{broker_code}）：{why}",
        "broker-refused": (
            "令牌服务拒绝了本程序（{broker_code}）：{why} 请检查 [avatars] 中的 app 和 key_file。"
        ),
        "budget-spent": "本程序每天最多拉取 400 次关注者列表，目前已用完，稍后会恢复。",
        "image-unavailable": "无法获取头像图片：{why}。",
    },
}
WHY: Final[Mapping[str, Mapping[str, str]]] = {
    ENGLISH: {
        "busy": "it says that it is busy",
        "silent": "no answer within {amount:g} s",
        "late": "no answer yet",
        "broken": "the connection failed",
        "proxy": "the HTTP proxy on the way out refused or was not reached (HTTP {amount:g})",
        "status": "HTTP {amount:g}",
        "garbage": "the answer makes no sense",
        "elsewhere": "its address is not one of WeChat's",
        "large": "it is larger than {amount:g} MiB",
        "no-picture": "it is no picture",
        "gone": "WeChat has it no more",
    },
    CHINESE: {
        "busy": "微信系统繁忙",
        "silent": "{amount:g} 秒内没有响应",
        "late": "尚未响应",
        "broken": "连接失败",
        "proxy": "出口 HTTP 代理拒绝连接或无法连接（HTTP {amount:g}）",
        "status": "HTTP {amount:g}",
        "garbage": "响应无法识别",
        "elsewhere": "地址不属于微信",
        "large": "大于 {amount:g} MiB",
        "no-picture": "不是图片",
        "gone": "微信已不再保留该头像",
    },
}
ADDRESS: Final = {ENGLISH: " {ip}", CHINESE: " {ip} "}

PAGE: Final[Mapping[str, Mapping[str, str]]] = {
    ENGLISH: {
        "title": "Followers",
        "count_one": "1 follower",
        "count": "{total} followers",
        "range": "{first}–{last} of {total}",
        "nobody": "Nobody follows this account yet.",
        "past_the_end": "The list ends before this page.",
        "withheld_one": "One of these avatars is withheld.",
        "withheld": "{count} of these avatars are withheld.",
        "withheld_all": "All of these avatars are withheld.",
        "why_withheld": (
            "Since 27 December 2021 WeChat no longer tells accounts their followers’ names and"
            " pictures, so a silhouette stands in for them."
        ),
        "agreed": "{agreed} of {total} followers agreed to show their avatar.",
        "agree": "Show mine, or take it back",
        "withheld_label": "avatar withheld",
        "gone_label": "no longer follows",
        "number": "Follower {number}",
        "first": "First",
        "previous": "Previous",
        "next": "Next",
        "pages": "Pages",
        "pages_below": "Pages, below the list",
        "skip": "Skip to the followers",
        "as_of": "As of",
        "stale": "This list is {age} old.",
        "trouble": "The followers cannot be shown",
        "again": "Try again",
        "bad_request": "This address is not right",
        "bad_address": "Perhaps it was cut off when it was copied.",
        "home": "To the first page",
    },
    CHINESE: {
        "title": "关注者",
        "count_one": "1 位关注者",
        "count": "{total} 位关注者",
        "range": "第 {first}–{last} 位，共 {total} 位",
        "nobody": "还没有人关注这个账号。",
        "past_the_end": "列表在这一页之前就结束了。",
        "withheld_one": "本页有 1 个头像未提供。",
        "withheld": "本页有 {count} 个头像未提供。",
        "withheld_all": "本页所有头像均未提供。",
        "why_withheld": (
            "自 2021 年 12 月 27 日起，微信不再向公众号提供关注者的昵称和头像，因此以剪影代替。"
        ),
        "agreed": "{total} 位关注者中有 {agreed} 位同意显示头像。",
        "agree": "显示我的头像，或撤回同意",
        "withheld_label": "头像未提供",
        "gone_label": "已取消关注",
        "number": "关注者 {number}",
        "first": "首页",
        "previous": "上一页",
        "next": "下一页",
        "pages": "分页",
        "pages_below": "列表下方的分页",
        "skip": "跳到关注者列表",
        "as_of": "数据时间",
        "stale": "此列表为 {age}前的数据。",
        "trouble": "暂时无法显示关注者",
        "again": "重试",
        "bad_request": "网址不正确",
        "bad_address": "可能在复制时不完整。",
        "home": "回到第一页",
    },
}


def sentence(code: str, facts: Mapping[str, object], lang: str = ENGLISH) -> str:
    """What is wrong and what to do about it."""
    ip = ADDRESS[lang].format(ip=facts["ip"]) if facts.get("ip") else ""
    why = str(facts.get("why", ""))
    why = (
        WHY[lang][why].format(amount=facts.get("amount", 0)) if why in WHY[lang] else why
    )  # the daemon's are its own
    return TROUBLES[lang][code].format(**{**facts, "ip": ip, "why": why})
