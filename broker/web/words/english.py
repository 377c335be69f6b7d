"""English: what the API, the log, the commands and the page say about codes and facts."""

from collections.abc import Mapping
from typing import Final

from broker.core.errcodes import Advice, Failure, FailureCode, Flaw
from broker.core.quota import Limit
from broker.core.serving import Unavailable, UnavailableReason
from broker.web.words.failures import FailureWords

_BLOCKED: Final = (
    "An administrator denied this server's request: it is blocked for {}; ask them before it ends."
)

FAILURES: Final = FailureWords(
    reasons={
        FailureCode.ERRCODE: "errcode {errcode}",
        FailureCode.HTTP_STATUS: "HTTP {status}",
        FailureCode.NO_ANSWER: "no answer within {seconds} s",
        FailureCode.CERTIFICATE: "the TLS certificate is not one we trust",
        FailureCode.TLS: "TLS could not be set up",
        FailureCode.NAME: "the name does not resolve",
        FailureCode.CONNECT: "cannot connect",
        FailureCode.CONNECTION_BROKE: "the connection broke",
        FailureCode.PROXY_UNREACHABLE: "the proxy on the way out cannot be reached",
        FailureCode.PROXY_NAME: "the name of the proxy on the way out does not resolve",
        FailureCode.PROXY_PASSWORD: (
            "the proxy on the way out wants another user and password (HTTP 407)"
        ),
        FailureCode.PROXY_REFUSED: (
            "the proxy on the way out refused the connection (HTTP {status})"
        ),
        FailureCode.PROXY_TUNNEL: "the proxy on the way out makes no tunnel",
        FailureCode.PROXY_NOT_HTTP: "the proxy on the way out does not speak HTTP",
        FailureCode.NOT_HTTP: "not HTTP ({error})",
        FailureCode.UNREADABLE: "an answer too large or garbled",
        FailureCode.NOT_AN_ANSWER: "not an answer of WeChat's: {flaw}",
        FailureCode.STOPPED_IN_CALL: "the broker was stopped during a token call",
        FailureCode.STOPPED_IN_EMERGENCY: "the broker was stopped during an emergency",
        FailureCode.NO_TOKEN_FOR_TICKET: "there is no token to ask for a ticket with",
        FailureCode.TICKET_TOKEN_REFUSED: (
            "WeChat refused the token that the ticket was asked for with"
        ),
        FailureCode.UNKNOWN: "another version of the broker noted the reason",
    },
    flaws={
        Flaw.NOT_UTF8: "not UTF-8",
        Flaw.TOO_DEEP: "nested too deeply",
        Flaw.NOT_JSON: "not JSON",
        Flaw.NOT_AN_OBJECT: "not a JSON object",
        Flaw.KEY_TWICE: "a key stands twice",
        Flaw.NOT_FINITE: "NaN or Infinity",
        Flaw.ERRCODE: "an errcode that is no integer",
        Flaw.MISSING: "no {field}",
        Flaw.MALFORMED: "an {field} that is empty, too long, or has blanks",
        Flaw.EXPIRES_IN: "an expires_in that is not a positive number of seconds",
    },
    advices={
        Advice.WAIT: "Nothing to do: it is tried again, ever more slowly.",
        Advice.PROXY: (
            "WeChat was not asked: see to the HTTP proxy that [wechat] names in the configuration."
            " It is tried again, ever more slowly."
        ),
        Advice.SECRET: (
            "WeChat does not accept the AppSecret: put the current one into the app's secret file"
            " and restart."
        ),
        Advice.APPID: "WeChat does not know this AppID: correct `appid` in the configuration.",
        Advice.RIGHTS: (
            "The account may not use this interface: see its permissions in WeChat's console."
        ),
        Advice.REQUEST: (
            "WeChat calls the request malformed: check `endpoint` and `api_base`; else this broker"
            " needs an update."
        ),
        Advice.FROZEN: "The account or its secret is frozen: unfreeze it in WeChat's console.",
        Advice.WHITELIST: (
            "Add this host's public IP to the account's IP whitelist in WeChat's console."
        ),
        Advice.CONFIRM: (
            "An administrator must confirm this server: see the message WeChat sent them."
        ),
        Advice.BLOCKED_A_DAY: _BLOCKED.format("24 hours"),
        Advice.BLOCKED_AN_HOUR: _BLOCKED.format("an hour"),
        Advice.QUOTA: (
            "The day's {thing} calls are spent: calls resume with the next quota day. Look for a"
            " second issuer."
        ),
        Advice.TOO_MANY_A_MINUTE: "Too many calls a minute: the broker slows down by itself.",
        Advice.TOO_MANY: "Too many calls: the broker slows down by itself.",
        Advice.WECOM_SECRET: (
            "WeCom does not accept the secret: put the app's current one into its secret file and"
            " restart."
        ),
        Advice.WECOM_CORPID: (
            "WeCom does not know this corpid: correct `appid` in the configuration."
        ),
        Advice.WECOM_RIGHTS: (
            "The app may not use this interface: see its permissions in WeCom's console."
        ),
        Advice.WECOM_OTHER_TICKET: (
            "The ticket is another app's, or of the other kind: wx.config takes the company's"
            " (jsapi), wx.agentConfig the app's own (agent_config)."
        ),
        Advice.WECOM_TRUSTED_IP: (
            "Add this host's public IP to the app's trusted IPs in WeCom's console."
        ),
    },
    seen_as="WeChat saw this broker as {ip}.",
    drift=(
        "The ledger knows of {known}: WeChat counts at least {unknown} calls that this broker did"
        " not make."
    ),
    gap=" ",
    token="token",  # noqa: S106 -- a word
)

TICKET: Final = "ticket"  # what the sentences below speak of, where it is no token

UNAVAILABLE: Final[Mapping[UnavailableReason, str]] = {
    UnavailableReason.STARTING: "The first {thing} is being fetched.",
    UnavailableReason.STOPPING: "The broker is stopping; another one will answer in a moment.",
    UnavailableReason.NOT_RECORDED: "No call can be recorded, so none is made: {store_error}",
    UnavailableReason.LIMIT: "{limit} is spent; the broker's own ledger says so.",
    UnavailableReason.CALL_FAILED: "WeChat gave no {thing}: {reason}. {advice}",
    UnavailableReason.BEING_REPLACED: (
        "WeChat refuses the current {thing}; it is replaced as soon as min_gap and the quota allow."
    ),
    UnavailableReason.TOO_LITTLE_LEFT: (
        "No {thing} with that much time left; the next one is not due yet."
    ),
    UnavailableReason.NOT_VERIFIED: "WeChat could not be asked whether the {thing} lives.",
    UnavailableReason.NO_VERDICT: (
        "WeChat answered, but not whether the {thing} lives: a limit or a right of that interface"
        " stands in the way. If the {thing} is still refused, report it again after verify_gap."
    ),
    UnavailableReason.JUST_VERIFIED: "This {thing} was verified a moment ago.",
    UnavailableReason.TOO_SOON: (
        "A {thing} call was made less than min_gap ago, or WeChat itself asked for a pause."
    ),
    UnavailableReason.REMOVED: "The configuration does not name this app any more.",
}


# The limit of people and reports, which has no key of its own in the configuration.
SHARE: Final = "All of daily_quota that the schedule does not need"


def unavailable(answer: Unavailable, thing: str = FAILURES.token) -> str:
    """Say in a sentence why there is no `thing` now."""
    failure = answer.failure
    return UNAVAILABLE[answer.reason].format(
        thing=thing,
        store_error=answer.store_error,
        limit=SHARE if answer.limit is Limit.SCHEDULE_SHARE else answer.limit,
        reason=FAILURES.reason(failure) if failure else "",
        advice=FAILURES.advice(failure, thing) if failure else "",
    )


def event_facts(facts: Mapping[str, object]) -> dict[str, object]:
    """Return an event's facts as the log writes them: a failure in sentences, the rest as it is."""
    failure = facts.get("failure")
    if not isinstance(failure, Failure):
        return dict(facts)
    told = {
        "reason": FAILURES.reason(failure),
        "advice": FAILURES.advice(failure),
        "ip": failure.ip,
        "rid": failure.rid,
    }
    return {**{name: fact for name, fact in facts.items() if name != "failure"}, **told}
