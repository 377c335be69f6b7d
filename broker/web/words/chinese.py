"""Chinese: what the page says about codes and facts."""

from typing import Final

from broker.core.errcodes import Advice, FailureCode, Flaw
from broker.web.words.failures import FailureWords

_BLOCKED: Final = "管理员拒绝了本服务器的请求，微信将封锁 {}；请在此之前联系管理员。"

FAILURES: Final = FailureWords(
    reasons={
        FailureCode.ERRCODE: "错误码 {errcode}",
        FailureCode.HTTP_STATUS: "HTTP {status}",
        FailureCode.NO_ANSWER: "{seconds} 秒内没有应答",
        FailureCode.CERTIFICATE: "TLS 证书不受信任",
        FailureCode.TLS: "无法建立 TLS 连接",
        FailureCode.NAME: "域名无法解析",
        FailureCode.CONNECT: "无法连接",
        FailureCode.CONNECTION_BROKE: "连接中断",
        FailureCode.PROXY_UNREACHABLE: "无法连接出口 HTTP 代理",
        FailureCode.PROXY_NAME: "出口 HTTP 代理的域名无法解析",
        FailureCode.PROXY_PASSWORD: "出口 HTTP 代理要求其他用户名和密码（HTTP 407）",
        FailureCode.PROXY_REFUSED: "出口 HTTP 代理拒绝连接（HTTP {status}）",
        FailureCode.PROXY_TUNNEL: "出口 HTTP 代理没有建立隧道",
        FailureCode.PROXY_NOT_HTTP: "出口代理的应答不是 HTTP",
        FailureCode.NOT_HTTP: "应答不是 HTTP（{error}）",
        FailureCode.UNREADABLE: "应答过大或已损坏",
        FailureCode.NOT_AN_ANSWER: "应答不是微信的格式（{flaw}）",
        FailureCode.STOPPED_IN_CALL: "服务在调用令牌接口时被停止",
        FailureCode.STOPPED_IN_EMERGENCY: "服务在紧急调用时被停止",
        FailureCode.NO_TOKEN_FOR_TICKET: "没有可用于获取票据的令牌",
        FailureCode.TICKET_TOKEN_REFUSED: "微信拒绝了用于获取票据的令牌",
        FailureCode.UNKNOWN: "原因由本程序的另一版本记录",
    },
    flaws={
        Flaw.NOT_UTF8: "不是 UTF-8",
        Flaw.TOO_DEEP: "嵌套过深",
        Flaw.NOT_JSON: "不是 JSON",
        Flaw.NOT_AN_OBJECT: "不是 JSON 对象",
        Flaw.KEY_TWICE: "有重复的键",
        Flaw.NOT_FINITE: "含有 NaN 或 Infinity",
        Flaw.ERRCODE: "errcode 不是整数",
        Flaw.MISSING: "没有 {field}",
        Flaw.MALFORMED: "{field} 为空、过长或含有空白",
        Flaw.EXPIRES_IN: "expires_in 不是正的秒数",
    },
    advices={
        Advice.WAIT: "无需处理：系统会自动重试，间隔逐渐加长。",
        Advice.PROXY: (
            "没有请求到微信：请检查配置中 [wechat] 的 HTTP 代理；系统会自动重试，间隔逐渐加长。"
        ),
        Advice.SECRET: "微信不接受该 AppSecret：请把当前的 AppSecret 写入应用的密钥文件并重启。",
        Advice.APPID: "微信不认识该 AppID：请更正配置中的 appid。",
        Advice.RIGHTS: "该账号没有此接口的权限：请在微信后台查看接口权限。",
        Advice.REQUEST: (
            "微信认为请求格式有误：请检查 endpoint 和 api_base；若无误，则需要升级本程序。"
        ),
        Advice.FROZEN: "账号或 AppSecret 已被冻结：请在微信后台解除冻结。",
        Advice.WHITELIST: "请在微信后台把本机的公网 IP 加入该账号的 IP 白名单。",
        Advice.CONFIRM: "需要管理员确认本服务器：请查看微信发给管理员的消息。",
        Advice.BLOCKED_A_DAY: _BLOCKED.format("24 小时"),
        Advice.BLOCKED_AN_HOUR: _BLOCKED.format("1 小时"),
        Advice.QUOTA: (
            "今天的{thing}调用次数已用完，将在下一个计日恢复。请检查是否有其他程序在获取令牌。"
        ),
        Advice.TOO_MANY_A_MINUTE: "每分钟调用过多：系统会自动放慢。",
        Advice.TOO_MANY: "调用过多：系统会自动放慢。",
        Advice.WECOM_SECRET: (
            "企业微信不接受该 Secret：请把应用当前的 Secret 写入密钥文件并重启。"
        ),
        Advice.WECOM_CORPID: "企业微信不认识该 corpid：请更正配置中的 appid。",
        Advice.WECOM_RIGHTS: "该应用没有此接口的权限：请在企业微信后台查看接口权限。",
        Advice.WECOM_OTHER_TICKET: (
            "票据属于其他应用或另一种类：wx.config 用企业票据（jsapi），wx.agentConfig"
            " 用应用自己的票据（agent_config）。"
        ),
        Advice.WECOM_TRUSTED_IP: "请在企业微信后台把本机的公网 IP 加入该应用的可信 IP。",
    },
    seen_as="微信看到的本机 IP 是 {ip}。",
    drift="微信至少统计到 {unknown} 次不是由本服务发起的调用。",
    gap="",
    token="令牌",  # noqa: S106 -- a word
)
