"""What is told of each state, in English and Chinese: what is wrong, and what a person must do."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from broker.http.language import CHINESE, ENGLISH


@dataclass(frozen=True, slots=True)
class Texts:
    """The words of one language.

    `states` has a line and an advice for each state, with {app}, {appid}, {about}, {errcode}, {ip},
    {limit} and {console} to be filled in; `changes` says of a state's line what happened to it.
    """

    states: Mapping[str, tuple[str, str]]
    changes: Mapping[str, str]
    beside: Mapping[str, tuple[str, str]]
    consoles: Mapping[str, str]
    since: str
    broker: str
    nothing: str
    itself: str
    its_address: str


TEXTS: Final[Mapping[str, Texts]] = {
    ENGLISH: Texts(
        states={
            "no-token": (
                "no token for {app}",
                "Services get no token of {app} ({appid}). The status page says why.",
            ),
            "ip-not-whitelisted": (
                "WeChat refuses this server's IP for {app}",
                "Add {ip} to the IP whitelist of {app} ({appid}) in {console}. Errcode {errcode}.",
            ),
            "secret-refused": (
                "the AppSecret of {app} is refused",
                (
                    "Put the current AppSecret of {appid} into the secret file of {app}."
                    " Errcode {errcode}."
                ),
            ),
            "frozen": (
                "{app} is frozen",
                "Unfreeze the account or the AppSecret of {appid} in {console}. Errcode {errcode}.",
            ),
            "call-refused": (
                "WeChat refuses the token calls of {app}",
                (
                    "Check the AppID, the endpoint and the permissions of {app} ({appid})."
                    " Errcode {errcode}."
                ),
            ),
            "confirmation-needed": (
                "an administrator must confirm the server of {app}",
                (
                    "The administrator of {appid} has a message from WeChat: confirm the request in"
                    " it. Errcode {errcode}."
                ),
            ),
            "denied-by-administrator": (
                "an administrator denied the server of {app}",
                (
                    "Ask the administrator of {appid}: WeChat blocks this server for a while."
                    " Errcode {errcode}."
                ),
            ),
            "quota-spent": (
                "the token calls of {app} are spent",
                (
                    "No token call of {app} ({appid}) is left for now. Find out what spends them:"
                    " the status page shows two days of calls."
                ),
            ),
            "quota-nearly-spent": (
                "the token calls of {app} are nearly spent",
                (
                    "Four fifths of {limit} calls of {app} ({appid}) are spent. The status page"
                    " shows what made them."
                ),
            ),
            "second-issuer": (
                "somebody else fetches tokens of {app}",
                (
                    "Find the program that calls the token endpoint with the AppSecret of {appid},"
                    " or change the AppSecret."
                ),
            ),
            "store-failing": (
                "the store takes no writes",
                (
                    "Look at the disk or the database of {about}: tokens are served from memory,"
                    " and no call is made without a record."
                ),
            ),
            "broker-silent": (
                "the broker {about} is silent",
                "Look whether {about} still runs and reaches the database.",
            ),
            "logins-failing": (
                "logins of {app} fail",
                "WeChat refuses the logins of {app} ({appid}): check its AppSecret.",
            ),
            "sink-behind": (
                "a sink of {app} is behind",
                (
                    "Programs that read {about} do not get the token in force. The status page says"
                    " why."
                ),
            ),
        },
        changes={
            "entered": "[token-broker] {what}",
            "left": "[token-broker] over: {what}",
            "reminder": "[token-broker] still: {what}",
        },
        beside={
            "held-back": (
                "[token-broker] more is held back",
                "More has happened than is told in an hour. The status page shows all of it.",
            ),
            "test": (
                "[token-broker] a test",
                "This is what a notification of the token broker looks like. Nothing is wrong.",
            ),
        },
        consoles={"wechat": "WeChat's console (mp.weixin.qq.com)", "wecom": "WeCom's console"},
        since="Since {at}.",
        broker="Told by {name}.",
        nothing="There is nothing left to do.",
        itself="this broker",
        its_address="this server's public IP",
    ),
    CHINESE: Texts(
        states={
            "no-token": (
                "{app} 没有可用的令牌",
                "各服务目前取不到 {app}（{appid}）的令牌，原因见状态页。",
            ),
            "ip-not-whitelisted": (
                "微信拒绝了本服务器的 IP（{app}）",
                "请在{console}把 {ip} 加入 {app}（{appid}）的 IP 白名单。错误码 {errcode}。",
            ),
            "secret-refused": (
                "{app} 的 AppSecret 不被接受",
                "请把 {appid} 当前的 AppSecret 写入 {app} 的密钥文件。错误码 {errcode}。",
            ),
            "frozen": (
                "{app} 已被冻结",
                "请在{console}解除 {appid} 账号或 AppSecret 的冻结。错误码 {errcode}。",
            ),
            "call-refused": (
                "微信拒绝了 {app} 的令牌调用",
                "请检查 {app}（{appid}）的 AppID、endpoint 和接口权限。错误码 {errcode}。",
            ),
            "confirmation-needed": (
                "{app} 的服务器需要管理员确认",
                "微信已给 {appid} 的管理员发送消息，请管理员在消息中确认。错误码 {errcode}。",
            ),
            "denied-by-administrator": (
                "管理员拒绝了 {app} 的服务器",
                "请联系 {appid} 的管理员：微信会暂时封锁本服务器。错误码 {errcode}。",
            ),
            "quota-spent": (
                "{app} 的令牌调用次数已用完",
                "{app}（{appid}）目前不能再调用令牌接口。请查明是谁用掉的：状态页有两天的调用记录。",
            ),
            "quota-nearly-spent": (
                "{app} 的令牌调用次数即将用完",
                "{app}（{appid}）的 {limit} 次调用已用去五分之四。状态页可以看出是谁触发的。",
            ),
            "second-issuer": (
                "有其他程序在获取 {app} 的令牌",
                "请找出用 {appid} 的 AppSecret 调用令牌接口的程序，或更换 AppSecret。",
            ),
            "store-failing": (
                "存储无法写入",
                "请检查{about}的磁盘或数据库：令牌由内存提供，没有记录就不会调用微信。",
            ),
            "broker-silent": (
                "服务实例 {about} 没有消息",
                "请检查 {about} 是否仍在运行、能否连接数据库。",
            ),
            "logins-failing": (
                "{app} 的登录失败",
                "微信拒绝了 {app}（{appid}）的登录请求，请检查它的 AppSecret。",
            ),
            "sink-behind": (
                "{app} 的令牌没有写到位",
                "从 {about} 读取令牌的程序拿不到当前的令牌，原因见状态页。",
            ),
        },
        changes={
            "entered": "[token-broker] {what}",
            "left": "[token-broker] 已恢复：{what}",
            "reminder": "[token-broker] 仍未解决：{what}",
        },
        beside={
            "held-back": (
                "[token-broker] 还有更多通知未发送",
                "一小时内的事件超过了通知上限，全部情况见状态页。",
            ),
            "test": ("[token-broker] 测试", "令牌服务的通知就是这个样子。一切正常。"),
        },
        consoles={"wechat": "微信公众平台（mp.weixin.qq.com）", "wecom": "企业微信管理后台"},
        since="开始于{at}。",
        broker="由 {name} 通知。",
        nothing="无需再处理。",
        itself="本服务",
        its_address="本服务器的公网 IP",
    ),
}
