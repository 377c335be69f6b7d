"""What went wrong at WeChat and what to do about it, in Chinese; the English is the core's own (errcodes.py)."""

import re
from collections.abc import Mapping
from typing import Any, Final

from broker.core.credential import Endpoint
from broker.core.errcodes import Kind
from broker.http.language import ENGLISH

_BLOCKED: Final = "管理员拒绝了本服务器的请求，微信将封锁 {}；请在此之前联系管理员。"
_SECRET: Final = "微信不接受该 AppSecret：请把当前的 AppSecret 写入应用的密钥文件并重启。"  # noqa: S105 -- a sentence
_APPID: Final = "微信不认识该 AppID：请更正配置中的 appid。"
_RIGHTS: Final = "该账号没有此接口的权限：请在微信后台查看接口权限。"
_REQUEST: Final = "微信认为请求格式有误：请检查 endpoint 和 api_base；若无误，则需要升级本程序。"
_FROZEN: Final = "账号或 AppSecret 已被冻结：请在微信后台解除冻结。"
_WHITELIST: Final = "请在微信后台把本机的公网 IP 加入该账号的 IP 白名单。"
_CONFIRM: Final = "需要管理员确认本服务器：请查看微信发给管理员的消息。"
_WAIT: Final = "无需处理：系统会自动重试，间隔逐渐加长。"

ADVICE_ZH: Final[Mapping[int, str]] = {
    -1: _WAIT,
    40001: _SECRET,
    40002: _REQUEST,
    40013: _APPID,
    40125: _SECRET,
    40164: _WHITELIST,
    40243: _FROZEN,
    41002: _APPID,
    41004: _SECRET,
    43002: _REQUEST,
    45009: "今天的令牌调用次数已用完，将在下一个计日恢复。请检查是否有其他程序在获取令牌。",
    45011: "每分钟调用过多：系统会自动放慢。",
    48001: _RIGHTS,
    48004: _RIGHTS,
    50002: _FROZEN,
    50004: _FROZEN,
    50007: _FROZEN,
    61004: _WHITELIST,
    61024: _REQUEST,
    89501: _CONFIRM,
    89503: _CONFIRM,
    89506: _BLOCKED.format("24 小时"),
    89507: _BLOCKED.format("1 小时"),
}
_CORP_SECRET: Final = "企业微信不接受该 Secret：请把应用当前的 Secret 写入密钥文件并重启。"  # noqa: S105 -- a sentence
_CORP: Final = "企业微信不认识该 corpid：请更正配置中的 appid。"
WECOM_ADVICE_ZH: Final[Mapping[int, str]] = {
    -1: _WAIT,
    40001: _CORP_SECRET,
    40013: _CORP,
    41002: _CORP,
    41004: _CORP_SECRET,
    42012: "票据属于其他应用或另一种类：wx.config 用企业票据（jsapi），wx.agentConfig 用应用自己的票据（agent_config）。",
    45009: "调用过多：系统会自动放慢。",
    48002: "该应用没有此接口的权限：请在企业微信后台查看接口权限。",
    60020: "请在企业微信后台把本机的公网 IP 加入该应用的可信 IP。",
}
_DRIFT: Final = "微信至少统计到 {count} 次不是由本服务发起的调用。"
_SEEN_AS: Final = "微信看到的本机 IP 是 {ip}。"
REASONS_ZH: Final[Mapping[str, str]] = {
    r"no answer within (.*) s": r"\1 秒内没有应答",
    r"the TLS certificate is not one we trust": "TLS 证书不受信任",
    r"TLS could not be set up": "无法建立 TLS 连接",
    r"the name does not resolve": "域名无法解析",
    r"cannot connect": "无法连接",
    r"the connection broke": "连接中断",
    r"not HTTP \((.*)\)": r"应答不是 HTTP（\1）",
    r"an answer too large or garbled": "应答过大或已损坏",
    r"not an answer of WeChat's: (.*)": r"应答不是微信的格式（\1）",
    r"the broker was stopped during a token call": "服务在调用令牌接口时被停止",
    r"the broker was stopped during an emergency": "服务在紧急调用时被停止",
    r"there is no token to ask for a ticket with": "没有可用于获取票据的令牌",
    r"WeChat refused the token that the ticket was asked for with": "微信拒绝了用于获取票据的令牌",
    r"errcode (.*)": r"错误码 \1",
}


def advice(error: Mapping[str, Any], lang: str, remaining: int, endpoint: str) -> str:
    """What to do about a `last_error` of /v1/status; `remaining`: calls that our own ledger would still allow."""
    if lang == ENGLISH:
        return str(error["advice"])
    known = WECOM_ADVICE_ZH if endpoint == Endpoint.WECOM else ADVICE_ZH
    told = known.get(
        error["errcode"], _WAIT
    )  # a code that nobody listed is taken as passing, as in the core
    if error["class"] == Kind.QUOTA and remaining:
        told += _DRIFT.format(count=remaining)
    return told + (_SEEN_AS.format(ip=error["ip"]) if error["ip"] else "")


def reason(english: str, lang: str) -> str:
    """Why a call failed; what we have no Chinese for, in English."""
    if lang == ENGLISH:
        return english
    for pattern, chinese in REASONS_ZH.items():
        if found := re.fullmatch(pattern, english):
            return found.expand(chinese)
    return english
