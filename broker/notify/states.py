"""The states of the daemon that need a person, as keepers and store show them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from broker.core.credential import Endpoint
from broker.core.errcodes import Failure, Kind
from broker.core.ports import Node
from broker.tokens.keeper import Keeper

Facts = Mapping[str, str | int]
NEARLY: Final = 0.8  # of the daily quota
SILENT_S: Final = 30.0  # fifteen heartbeats of a broker


class StateKind(StrEnum):
    """What is wrong; the values are public: hooks and webhooks get them."""

    NO_TOKEN = "no-token"  # noqa: S105 -- a name
    IP_NOT_ALLOWED = "ip-not-whitelisted"
    SECRET_REFUSED = "secret-refused"  # noqa: S105 -- a name
    FROZEN = "frozen"
    CALL_REFUSED = "call-refused"
    CONFIRMATION = "confirmation-needed"
    DENIED = "denied-by-administrator"
    QUOTA_SPENT = "quota-spent"
    QUOTA_NEARLY_SPENT = "quota-nearly-spent"
    SECOND_ISSUER = "second-issuer"
    STORE_FAILING = "store-failing"
    BROKER_SILENT = "broker-silent"
    LOGINS_FAILING = "logins-failing"
    SINK_BEHIND = "sink-behind"


@dataclass(frozen=True, slots=True)
class TroubleState:
    """Something that is wrong. `app` is empty where it is not about one.

    `facts` are what its sentences name, and hold neither a token nor a secret.
    """

    kind: StateKind
    app: str = ""
    about: str = ""  # a broker's name, a sink's label
    facts: Facts = field(default_factory=dict, compare=False)

    @property
    def key(self) -> str:
        """What tells it from other states."""
        return f"{self.kind.value}|{self.app}|{self.about}"


SECRET_REFUSED: Final = frozenset({40001, 40125, 41004})
FROZEN: Final = frozenset({40243, 50002, 50004, 50007})
KINDS: Final[Mapping[Kind, StateKind]] = {
    Kind.CONFIGURATION: StateKind.CALL_REFUSED,
    Kind.ADMISSION: StateKind.IP_NOT_ALLOWED,
    Kind.CONFIRMATION: StateKind.CONFIRMATION,
    Kind.BLOCKED: StateKind.DENIED,
    Kind.QUOTA: StateKind.QUOTA_SPENT,
}


def states(
    keepers: Iterable[Keeper],
    nodes: Sequence[Node],
    store_error: str | None,
    sinks_behind: Iterable[tuple[str, str]] = (),
    *,
    node: str = "",
) -> set[TroubleState]:
    """Return everything that needs a person now.

    `sinks_behind` are the apps and labels of sinks that do not hold the token in force. `node`
    names this broker where the store is shared: what the store refuses it is its own trouble,
    everything else is seen alike by all of them.
    """
    keepers = list(keepers)
    found = {state for keeper in keepers for state in _of_app(keeper)}
    if store_error or any(keeper.store_error for keeper in keepers):
        found.add(TroubleState(StateKind.STORE_FAILING, about=node))
    # By the store's clock, on which we ourselves are seen every two seconds.
    now = max((one.seen_at for one in nodes), default=0.0)
    for one in nodes:
        if now - one.seen_at >= SILENT_S:
            found.add(TroubleState(StateKind.BROKER_SILENT, about=one.name))
    found |= {TroubleState(StateKind.SINK_BEHIND, app, label) for app, label in sinks_behind}
    return found


def _of_app(keeper: Keeper) -> Iterator[TroubleState]:
    app, credential, spent = keeper.account.name, keeper.credential, keeper.usage()
    about = _facts(keeper)
    if keeper.serve() is None:
        yield TroubleState(StateKind.NO_TOKEN, app, facts=about)
    refused = None if credential.failure is None else _refusal(credential.failure)
    if refused is not None:
        yield TroubleState(refused, app, facts={**about, **_facts_of(credential.failure)})
    if spent.remaining == 0 and refused is not StateKind.QUOTA_SPENT:
        yield TroubleState(StateKind.QUOTA_SPENT, app, facts={**about, "limit": spent.limit})
    elif spent.remaining and max(spent.today, spent.last_24h) >= NEARLY * spent.limit:
        yield TroubleState(StateKind.QUOTA_NEARLY_SPENT, app, facts={**about, "limit": spent.limit})
    if credential.second_issuer.suspected:
        yield TroubleState(StateKind.SECOND_ISSUER, app, facts=about)


def _refusal(failure: Failure) -> StateKind | None:
    """What a failed call says is wrong; None where time cures it."""
    if failure.kind is Kind.CONFIGURATION and failure.errcode in SECRET_REFUSED:
        return StateKind.SECRET_REFUSED
    if failure.kind is Kind.CONFIGURATION and failure.errcode in FROZEN:
        return StateKind.FROZEN
    return KINDS.get(failure.kind)


def _facts(keeper: Keeper) -> dict[str, str | int]:
    platform = "wecom" if keeper.account.endpoint is Endpoint.WECOM else "wechat"
    return {"appid": keeper.account.appid, "platform": platform}


def _facts_of(failure: Failure | None) -> dict[str, str | int]:
    found: dict[str, str | int] = {}
    if failure is not None and failure.errcode is not None:
        found["errcode"] = failure.errcode
    if failure is not None and failure.ip:
        found["ip"] = failure.ip
    return found
