"""What the status page says, in English and Chinese."""

from collections.abc import Mapping
from typing import Final

from broker.http.language import CHINESE, ENGLISH
from broker.web.words import chinese, english
from broker.web.words.failures import FailureWords

FAILURES: Final[Mapping[str, FailureWords]] = {
    ENGLISH: english.FAILURES,
    CHINESE: chinese.FAILURES,
}

PAGE: Final[Mapping[str, Mapping[str, str]]] = {
    ENGLISH: {
        "title": "Token broker",
        "gap": " ",
        "colon": ": ",
        "all_well": "Every app has a token.",
        "no_apps": "There are no apps.",
        "some_bad": "No token for {bad} of {all} apps.",
        "some_warn": "Every app has a token; attention is due at {warn} of {all}.",
        "stopping": "The broker is stopping.",
        "not_ticking": "The schedule has stopped: nothing is refreshed. Restart the broker.",
        "away": "The broker does not answer; this is what it said last.",
        "version": "Version",
        "uptime": "up for",
        "fresh": "Valid",
        "stale": "Valid, due for replacement",
        "suspect": "In doubt: being verified or replaced",
        "unavailable": "No token",
        "endpoint_token": "classic endpoint",
        "endpoint_stable_token": "stable endpoint",
        "endpoint_wecom": "WeCom",
        "endpoint_none": "logins only",
        "login-only": "Keeps no token",
        "logins": "Logins since the start",
        "logins_of": "{good} of {total} let in",
        "logins_failed": "The last that failed: {reason}, {at}.",
        "logins_news": "WeChat refuses logins",
        "age": "Age",
        "no_time_left": "none",
        "next_refresh": "Next refresh",
        "in": "in {age}",
        "now": "now",
        "token_version": "Token version",
        "none": "none",
        "unknown": "unknown",
        "again": "The next call is made in {age}, at {at}.",
        "again_now": "The next call is due now.",
        "quota": "Token calls today",
        "quota_of": "{used} of {limit}",
        "quota_more": "{rolling} in 24 h, {remaining} left now.",
        "quota_note": "A day begins at midnight in Beijing.",
        "spent": "No token call is left",
        "spent_text": (
            "All {limit} of 24 hours are spent, and the limit is kept. The plot shows what made"
            " them."
        ),
        "plot": "Token calls per hour, two days",
        "plot_text": (
            "Calls: {total}, of which failed: {failed}, without an answer: {silent}. Top of the"
            " scale: {most} an hour."
        ),
        "plot_none": "No token call in two days.",
        "plot_missing": "The ledger cannot be read just now.",
        "hours_ago": "{hours} h ago",
        "plot_now": "now",
        "hour": "Hour",
        "table": "As a table",
        "scheduled": "scheduled",
        "report": "after reports",
        "admin": "by a person",
        "minted": "token",
        "failed": "failed",
        "silent": "no answer",
        "last_error": "Last token call failed",
        "at": "at",
        "request_id": "WeChat's request id:",
        "second_issuer": "Somebody else seems to fetch tokens",
        "second_issuer_text": (
            "{count} tokens died before their time, since {since}. Find the program that calls the"
            " token endpoint with this AppSecret, or change the AppSecret."
        ),
        "second_issuer_sign": (
            "{count} token(s) died before their time, since {since}. Three are a second issuer."
        ),
        "store_error": "The store does not take writes",
        "store_error_text": (
            "Tokens are served from memory; no call is made without a record. {error}"
        ),
        "who": "Who asks",
        "who_more": "and {count} more, longer ago",
        "who_none": "Nobody has asked for a token since the start.",
        "client": "Client",
        "requests": "Requests",
        "last_seen": "Last seen",
        "ticket": "Ticket",
        "fresh_ticket": "valid, {age} left",
        "no_ticket": "none",
        "nodes": "Brokers that share the store",
        "node": "Broker",
        "notified": "Last told of a change",
        "serves": "Serves",
        "same_as_here": "the same as this one",
        "other_versions": "another version of {count} app(s)",
        "never": "never",
        "ago": "{age} ago",
        "just_now": "just now",
        "local": "this machine (no clients configured)",
        "socket": "Unix socket",
        "apps": "Apps",
        "more_apps": "Pages of apps",
        "previous": "Previous",
        "next": "Next",
        "page_of": "Page {page} of {pages}",
        "all_apps": "All apps",
        "raw": "For programs:",
        "skip": "Skip to the apps",
        "sinks": "Written to",
        "sink_current": "holds the token in force",
        "sink_behind": "behind",
        "sink_waiting": "not written yet",
        "sink_empty": "empty: there is no token to write",
        "handouts": "Who was handed which version",
        "handouts_none": "Nobody was handed a token yet.",
        "handouts_missing": "The store cannot be read just now.",
        "handouts_note": (
            "Kept for 30 days. Who still names a version that is no longer in force uses a token"
            " that may be dead."
        ),
        "times": "Times",
        "first": "First",
        "last": "Last",
        "held": "Last named by the client",
        "in_force": "(in force)",
        "notifications": "Notifications",
        "receiver": "Receiver",
        "sent": "Sent",
        "last_sent": "Last sent",
        "told": "Told, and not over yet:",
        "told_nothing": "Nothing needs a person.",
        "notices": "What the configuration permits",
        "promised": "Surely good for",
        "ends": "WeChat's own end",
        "ends_in": "in {age}",
        "stable_second-issuer": (
            'With `endpoint = "stable_token"` programs that fetch classic tokens would not disturb'
            " this one, and services could move to the broker one after the other."
        ),
        "stable_lost-answer": (
            'With `endpoint = "stable_token"` a lost answer would do no harm: asking again brings'
            " the same token."
        ),
        "stable_quota": (
            'With `endpoint = "stable_token"` 500,000 calls a day are allowed, and asking again'
            " ends no token."
        ),
        "notice_compat-without-clients": (
            "`[compat]` is on and there are no `[clients]`: any program on this machine gets the"
            " token by WeChat's own paths, and so does a request that another server here is"
            " tricked into. Give each service a client with a key."
        ),
        "notice_plaintext": (
            "WeChat is asked over `http://` on another machine: whoever is on the way reads the"
            " AppSecret and every token."
        ),
        "notice_trusted-proxies-without-clients": (
            "There are `trusted_proxies` and no `[clients]`: whoever such a proxy lets through gets"
            " tokens. Give each service a client with a key."
        ),
        "notice_overlap-longer-than-life": (
            "`policy.overlap` is longer than a token may live before its replacement: clients are"
            " promised no more than that life."
        ),
        "notice_refresh-too-late": (
            "`policy.refresh_fraction` leaves less than a minute of a token's life: one failed call"
            " then means that there is no token."
        ),
        "notice_no-verification": (
            "`policy.verify_quota` is 0: WeChat is never asked whether a token lives, so a token"
            " that another program has ended is served until its time."
        ),
        "held_back": "More has happened than is told in an hour: this page shows all of it.",
        "trouble_unreachable": "not reached",
        "trouble_tls": "its TLS certificate is not one we trust",
        "trouble_timeout": "no answer in time",
        "trouble_http-status": "refused with HTTP status {number}",
        "trouble_refused": "refused (code {number})",
        "trouble_garbled": "answered something that is no robot's answer",
        "trouble_exit": "the program ended with {number}",
        "trouble_not-started": "the program could not be started",
        "trouble_not-delivered": "not delivered",
        "trouble_disk-full": "the disk is full",
        "trouble_not-writable": "the file cannot be written",
        "trouble_open-to-others": "others may write to its directory",
        "trouble_wrong-password": "wrong password",
        "trouble_bug": "a bug in the broker; see its log",
        "event_no-token": "No token",
        "event_ip-not-whitelisted": "IP not whitelisted",
        "event_secret-refused": "AppSecret refused",
        "event_frozen": "Frozen",
        "event_call-refused": "Token calls refused",
        "event_confirmation-needed": "An administrator must confirm",
        "event_denied-by-administrator": "Denied by an administrator",
        "event_quota-spent": "Quota spent",
        "event_quota-nearly-spent": "Quota nearly spent",
        "event_second-issuer": "Second issuer",
        "event_store-failing": "Store failing",
        "event_broker-silent": "A broker is silent",
        "event_logins-failing": "Logins fail",
        "event_sink-behind": "A sink is behind",
        "unknown_app": "There is no app of that name.",
    },
    CHINESE: {
        "title": "令牌服务",
        "gap": "",
        "colon": "：",
        "all_well": "所有应用都有可用的令牌。",
        "no_apps": "没有应用。",
        "some_bad": "{all} 个应用中有 {bad} 个没有令牌。",
        "some_warn": "所有应用都有令牌；{all} 个中有 {warn} 个需要关注。",
        "stopping": "服务正在停止。",
        "not_ticking": "调度已停止，令牌不会刷新，请重启服务。",
        "away": "服务没有响应，以下是最后一次的数据。",
        "version": "版本",
        "uptime": "已运行",
        "fresh": "有效",
        "stale": "有效，即将更换",
        "suspect": "存疑：正在验证或更换",
        "unavailable": "没有令牌",
        "endpoint_token": "普通接口",
        "endpoint_stable_token": "稳定版接口",
        "endpoint_wecom": "企业微信",
        "endpoint_none": "仅登录",
        "login-only": "不保存令牌",
        "logins": "启动以来的登录",
        "logins_of": "{total} 次中成功 {good} 次",
        "logins_failed": "最近一次失败：{reason}，{at}。",
        "logins_news": "微信拒绝登录",
        "age": "已使用",
        "no_time_left": "无",
        "next_refresh": "下次刷新",
        "in": "{age}后",
        "now": "现在",
        "token_version": "令牌版本",
        "none": "无",
        "unknown": "未知",
        "again": "下次调用在{age}后，即 {at}。",
        "again_now": "即将再次调用。",
        "quota": "今日令牌调用",
        "quota_of": "{used} / {limit}",
        "quota_more": "24 小时内 {rolling} 次，目前还可调用 {remaining} 次。",
        "quota_note": "按北京时间零点计日。",
        "spent": "令牌调用次数已用完",
        "spent_text": "24 小时内的 {limit} 次已全部用完，不会超出上限。下图可以看出是谁触发的。",
        "plot": "两天内每小时的令牌调用",
        "plot_text": (
            "共 {total} 次调用，其中失败 {failed} 次、没有应答 {silent} 次。纵轴上限为每小时"
            " {most} 次。"
        ),
        "plot_none": "两天内没有令牌调用。",
        "plot_missing": "暂时无法读取账本。",
        "hours_ago": "{hours} 小时前",
        "plot_now": "现在",
        "hour": "小时",
        "table": "以表格显示",
        "scheduled": "定时",
        "report": "报告触发",
        "admin": "人工",
        "minted": "得到令牌",
        "failed": "失败",
        "silent": "没有应答",
        "last_error": "最近一次令牌调用失败",
        "at": "时间",
        "request_id": "微信请求编号：",
        "second_issuer": "似乎有其他程序在获取令牌",
        "second_issuer_text": (
            "自 {since} 以来有 {count} 个令牌提前失效。请找出用同一 AppSecret 调用令牌接口的程序，"
            "或更换 AppSecret。"
        ),
        "second_issuer_sign": (
            "自 {since} 以来有 {count} 个令牌提前失效；达到三个即视为存在第二个获取者。"
        ),
        "store_error": "存储无法写入",
        "store_error_text": "令牌由内存提供；没有记录就不会调用微信。{error}",
        "who": "谁在使用",
        "who_more": "另有 {count} 个，时间更早",
        "who_none": "启动以来还没有人获取过令牌。",
        "client": "客户端",
        "requests": "请求数",
        "last_seen": "最近一次",
        "ticket": "票据",
        "fresh_ticket": "有效，剩余 {age}",
        "no_ticket": "无",
        "nodes": "共用存储的服务实例",
        "node": "实例",
        "notified": "最近收到变更通知",
        "serves": "提供的令牌",
        "same_as_here": "与本实例相同",
        "other_versions": "{count} 个应用的版本不同",
        "never": "从未",
        "ago": "{age}前",
        "just_now": "刚刚",
        "local": "本机（未配置客户端）",
        "socket": "Unix 套接字",
        "apps": "应用",
        "more_apps": "应用分页",
        "previous": "上一页",
        "next": "下一页",
        "page_of": "第 {page} 页，共 {pages} 页",
        "all_apps": "全部应用",
        "raw": "供程序使用：",
        "skip": "跳到应用列表",
        "sinks": "写入位置",
        "sink_current": "已是当前令牌",
        "sink_behind": "未更新",
        "sink_waiting": "尚未写入",
        "sink_empty": "空：目前没有可写的令牌",
        "handouts": "谁取得过哪个版本",
        "handouts_none": "还没有人取得过令牌。",
        "handouts_missing": "暂时无法读取存储。",
        "handouts_note": "保留 30 天。仍在使用旧版本的客户端，手中的令牌可能已经失效。",
        "times": "次数",
        "first": "首次",
        "last": "最近",
        "held": "客户端最近一次提到",
        "in_force": "（当前）",
        "notifications": "通知",
        "receiver": "接收者",
        "sent": "已发送",
        "last_sent": "最近发送",
        "told": "已通知且尚未结束：",
        "told_nothing": "目前没有需要人处理的事。",
        "notices": "配置中的风险",
        "promised": "保证可用",
        "ends": "微信自身的有效期",
        "ends_in": "还有 {age}",
        "stable_second-issuer": (
            '改用 `endpoint = "stable_token"` 后，其他获取普通令牌的程序不会影响本令牌，'
            "各服务可以逐个迁移到本服务。"
        ),
        "stable_lost-answer": (
            '改用 `endpoint = "stable_token"` 后，应答丢失没有影响：再次调用得到同一个令牌。'
        ),
        "stable_quota": (
            '改用 `endpoint = "stable_token"` 后，每天可调用 500,000 次，再次调用不会使令牌失效。'
        ),
        "notice_compat-without-clients": (
            "已开启 `[compat]` 但没有 `[clients]`：本机任何程序都能通过微信路径取得令牌，"
            "被诱导的其他服务器请求（SSRF）也能。请为每个服务配置一个带密钥的客户端。"
        ),
        "notice_plaintext": (
            "通过 `http://` 访问另一台机器上的微信接口：途中任何人都能读到 AppSecret 和所有令牌。"
        ),
        "notice_trusted-proxies-without-clients": (
            "配置了 `trusted_proxies` 但没有 `[clients]`：经这些代理进来的任何人都能取得令牌。"
            "请为每个服务配置一个带密钥的客户端。"
        ),
        "notice_overlap-longer-than-life": (
            "`policy.overlap` 长于令牌被替换前可能的寿命：对客户端的承诺不会超过这一寿命。"
        ),
        "notice_refresh-too-late": (
            "`policy.refresh_fraction` 给令牌留下的时间不足一分钟：一次调用失败就会没有令牌。"
        ),
        "notice_no-verification": (
            "`policy.verify_quota` 为 0：从不向微信验证令牌，"
            "被其他程序提前终止的令牌会一直提供到期满。"
        ),
        "held_back": "一小时内的事件超过了通知上限，全部情况见本页。",
        "trouble_unreachable": "无法连接",
        "trouble_tls": "TLS 证书不受信任",
        "trouble_timeout": "没有及时应答",
        "trouble_http-status": "被拒绝，HTTP 状态码 {number}",
        "trouble_refused": "被拒绝（代码 {number}）",
        "trouble_garbled": "应答不是机器人的格式",
        "trouble_exit": "程序退出码为 {number}",
        "trouble_not-started": "程序无法启动",
        "trouble_not-delivered": "未送达",
        "trouble_disk-full": "磁盘已满",
        "trouble_not-writable": "文件无法写入",
        "trouble_open-to-others": "所在目录可被他人写入",
        "trouble_wrong-password": "密码错误",
        "trouble_bug": "程序缺陷，见日志",
        "event_no-token": "没有令牌",
        "event_ip-not-whitelisted": "IP 不在白名单",
        "event_secret-refused": "AppSecret 不被接受",
        "event_frozen": "已被冻结",
        "event_call-refused": "令牌调用被拒绝",
        "event_confirmation-needed": "需要管理员确认",
        "event_denied-by-administrator": "被管理员拒绝",
        "event_quota-spent": "调用次数已用完",
        "event_quota-nearly-spent": "调用次数即将用完",
        "event_second-issuer": "有其他程序在获取令牌",
        "event_store-failing": "存储无法写入",
        "event_broker-silent": "有服务实例没有消息",
        "event_logins-failing": "登录失败",
        "event_sink-behind": "令牌没有写到位",
        "unknown_app": "没有这个名称的应用。",
    },
}
