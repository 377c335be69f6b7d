"""What the broker holds for one account, and THE decision: when to ask WeChat for another token.

Every instant (`*_at`, `not_before`, `safe_until`) is in seconds on one steady clock that runs through suspend and that
nobody can set. A change of state is a function from one :class:`Credential` to the next, so that a store can apply it
inside its own transaction.
"""

import hashlib
import hmac
import math
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, NoReturn
from zlib import crc32

from broker.core.errcodes import Failure

NEVER: Final = -math.inf
LIFETIME: Final = 7200.0  # what WeChat grants (wechat.md §1); each answer's own expires_in is what counts
RENEWED_AFTER: Final = 2.0  # WeCom repeats a token until it has expired; this long after its end there is another one
ROTATES_WITHIN: Final = 300.0  # the stable endpoint hands out another token only in the last 300 s (wechat.md §1)
TICKET_FRACTION: Final = 0.8
JITTER: Final = 0.1
SUSPECTS_SECOND_ISSUER_AT: Final = 3  # scenario 37
RIVALRY_FADES_AFTER: Final = 7 * 86400.0


class Secret:
    """A string that cannot print itself: ``repr``, ``str`` and ``format`` say ``[secret]``, and it does not pickle."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the string. Call it where the value leaves for its one destination, nowhere else."""
        return self._value

    def matches(self, text: str) -> bool:
        """Whether this is what somebody says, who may say anything; how long it takes tells nothing of where it differs."""
        return hmac.compare_digest(self._value.encode(), text.encode("utf-8", "surrogatepass"))

    def __repr__(self) -> str:
        return "[secret]"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self.matches(other._value)

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not written anywhere")


def fingerprint(secret: Secret, salt: str) -> str:
    """16 bits of a salted hash: enough to see that a secret was changed, far too few to learn anything of it."""
    return hashlib.sha256(f"{salt} {secret.reveal()}".encode()).hexdigest()[:4]


class Endpoint(StrEnum):
    """Where a credential comes from: WeChat's isolated token endpoints (wechat.md §1), WeCom's (§5), tickets (§4).

    A ticket is kept like a token. It is fetched with a token, does not die with it, and no cheap call tells if it lives.
    """

    TOKEN = "token"  # noqa: S105 -- the endpoint's name, as in the configuration
    STABLE = "stable_token"
    WECOM = "wecom"
    JSAPI = "jsapi"
    WX_CARD = "wx_card"


TICKETS: Final = (Endpoint.JSAPI, Endpoint.WX_CARD)
MORTAL: Final = (Endpoint.TOKEN, Endpoint.STABLE)  # where another program's call can kill our token


@dataclass(frozen=True, slots=True)
class Policy:
    """How the broker behaves; seconds where a time. The defaults are the contract's."""

    tick: float = 5
    refresh_fraction: float = 0.5
    overlap: float = 300
    min_gap: float = 30
    max_backoff: float = 300
    min_serve: float = 15
    verify_gap: float = 10
    report_quota: int = 200


@dataclass(frozen=True, slots=True)
class Account:
    """One of WeChat's accounts as the keeper knows it. `name` is what services call it."""

    name: str
    appid: str
    secret: Secret
    endpoint: Endpoint = Endpoint.TOKEN
    daily_quota: int = 2000

    @property
    def id(self) -> str:
        """What the store knows it by, with its endpoint. WeCom has one token per secret: a corpid has many apps."""
        return f"{self.appid}/{self.name}" if self.endpoint is Endpoint.WECOM else self.appid


@dataclass(frozen=True, slots=True)
class Token:
    """A token and how long WeChat said it lives. `call` is the ledger row of the call that brought it."""

    value: Secret
    call: int
    requested_at: float  # before the request was sent: the safe end to count from
    expires_at: float

    @property
    def lifetime(self) -> float:
        """Seconds from request to expiry."""
        return self.expires_at - self.requested_at


class Doubt(StrEnum):
    """Why the token we hold may not be good."""

    LOST_ANSWER = "lost-answer"  # a call may have minted another one: this one dies within the overlap
    CLOCK = "clock"  # its age is not known
    REFUSED = "refused"  # WeChat itself said so


@dataclass(frozen=True, slots=True)
class Suspicion:
    """A doubt, since when, and until when the token may be served all the same."""

    doubt: Doubt
    since: float
    safe_until: float


@dataclass(frozen=True, slots=True)
class Rivalry:
    """Signs of a second issuer: tokens that WeChat refused before their time though we had not replaced them.

    `since` and `last` are wall time (they are for people).
    """

    count: int = 0
    since: float | None = None
    last: float | None = None

    @property
    def suspected(self) -> bool:
        """Whether chance no longer explains it."""
        return self.count >= SUSPECTS_SECOND_ISSUER_AT

    def again(self, wall: float) -> "Rivalry":
        """One more sign; signs a week apart do not add up."""
        if self.since is None or self.last is None or wall - self.last > RIVALRY_FADES_AFTER:
            return Rivalry(1, wall, wall)
        return Rivalry(self.count + 1, self.since, wall)


@dataclass(frozen=True, slots=True)
class Credential:
    """All that is known of one account, and all that is stored of it."""

    epoch: str = ""
    token: Token | None = None
    suspicion: Suspicion | None = None
    called_at: float = NEVER  # start of the last token call, whatever came of it
    reserved_call: int | None = None  # a call that has no outcome yet
    not_before: float = NEVER  # no token call before this, because of `failure`
    failures: int = 0  # in a row
    failure: Failure | None = None
    checked_at: float = NEVER  # last verification
    rivalry: Rivalry = field(default_factory=Rivalry)
    fingerprint: str = ""  # of the AppSecret that `failure` is about, too short to tell anything of it

    @property
    def version(self) -> str | None:
        """What clients compare: the store's epoch and the call's number, or None without a token."""
        return None if self.token is None else f"{self.epoch}-{self.token.call}"

    @property
    def refused(self) -> bool:
        """Whether WeChat said that this token is dead."""
        return self.suspicion is not None and self.suspicion.doubt is Doubt.REFUSED


# --- the decision -----------------------------------------------------------------------------------------------------


def refresh_at(credential: Credential, endpoint: Endpoint, policy: Policy) -> float:
    """When the next token call is due: as soon as it is wanted and allowed. Quota is the ledger's business (quota.py)."""
    return max(wanted_at(credential, endpoint, policy), allowed_at(credential, policy))


def wanted_at(credential: Credential, endpoint: Endpoint, policy: Policy) -> float:
    """When we would like another token; at once where there is none, or one in doubt."""
    if credential.token is None or credential.suspicion is not None:
        return NEVER
    return scheduled_at(credential, endpoint, policy)


def scheduled_at(credential: Credential, endpoint: Endpoint, policy: Policy) -> float:
    """When the schedule alone replaces the token, doubt or no doubt.

    Classic: half-life, ± 10 % so that a thousand apps do not call together. Stable: inside the last 300 s, before which
    WeChat repeats the same token (wechat.md §1); 10 to 20 % inside, because the edge is theirs. WeCom: when it has
    expired, since until then the same one is repeated (§5). Tickets: as classic, but later: nobody says whether the same
    one is repeated until its end (§4), and then each time half would be left that costs a call.
    """
    token = credential.token
    if token is None:
        return NEVER
    if endpoint is Endpoint.WECOM:
        return token.expires_at + RENEWED_AFTER
    # Derived from the version rather than drawn: the same after a restart, with nothing to store.
    jitter = crc32(f"{credential.version}".encode()) / 2**32
    if endpoint is Endpoint.STABLE:
        margin = min(ROTATES_WITHIN * (1 - JITTER * (1 + jitter)), token.lifetime * (1 - policy.refresh_fraction))
        return token.expires_at - margin
    fraction = max(policy.refresh_fraction, TICKET_FRACTION) if endpoint in TICKETS else policy.refresh_fraction
    return token.requested_at + token.lifetime * fraction * (1 + JITTER * (2 * jitter - 1))


def allowed_at(credential: Credential, policy: Policy) -> float:
    """From when a call may be made, whatever wants it."""
    return max(credential.called_at + policy.min_gap, credential.not_before)


def safe_end(credential: Credential) -> float:
    """Until when the token may be handed out."""
    if credential.token is None:
        return NEVER
    if credential.suspicion is None:
        return credential.token.expires_at
    return min(credential.token.expires_at, credential.suspicion.safe_until)


def seconds_left(credential: Credential, policy: Policy, now: float) -> int | None:
    """Whole seconds the token may still be used, rounded down; None where it must not be handed out."""
    left = safe_end(credential) - now
    return math.floor(left) if left >= max(policy.min_serve, 1) else None


def check_at(credential: Credential, policy: Policy) -> float:
    """When to ask WeChat if the held token is alive, which is free; never where there is no reason to.

    After a lost answer it is asked twice: at once, since a refusal ends the matter; and when the overlap is surely over
    (its edge is fuzzy, wechat.md §1), since a token that still lives then was never pushed out.
    """
    suspicion, token = credential.suspicion, credential.token
    if suspicion is None or token is None or suspicion.doubt is not Doubt.LOST_ANSWER:
        return math.inf
    overlap_over, allowed = _overlap_over(suspicion, policy), credential.checked_at + policy.verify_gap
    if credential.checked_at < suspicion.since:
        wanted = suspicion.since
    else:
        wanted = overlap_over if credential.checked_at < overlap_over else math.inf
    at = max(wanted, allowed)
    return at if at < token.expires_at else math.inf


def _overlap_over(suspicion: Suspicion, policy: Policy) -> float:
    """From when a token that lives was not pushed out by any of the calls in question: the last one's overlap counts."""
    return max(suspicion.safe_until, suspicion.since + policy.overlap) + policy.overlap / 5


# --- what changes it --------------------------------------------------------------------------------------------------


def reserved(credential: Credential, call: int, now: float) -> Credential:
    """A token call is about to be made."""
    return replace(credential, called_at=now, reserved_call=call)


def minted(
    credential: Credential, call: int, started_at: float, answer: tuple[Secret, float], endpoint: Endpoint = Endpoint.TOKEN
) -> Credential:
    """WeChat answered with a token and its seconds. An answer older than what we hold changes nothing (the fence)."""
    value, expires_in = answer
    held = credential.token
    done = replace(_closed(credential, call), failures=0, failure=None, not_before=NEVER)
    if held is not None and held.call > call:
        return done
    if held is not None and held.value == value:
        # The same token again: same version, its expiry from this answer. One that was refused is repeated dead.
        # Whether WeCom tells what is left of a token it repeats, nobody says: it is not believed to prolong one.
        expires_at = started_at + expires_in
        if endpoint is Endpoint.WECOM and started_at < held.expires_at:
            expires_at = min(expires_at, held.expires_at)
        again = replace(held, requested_at=started_at, expires_at=expires_at)
        return replace(done, token=again, suspicion=credential.suspicion if credential.refused else None)
    return replace(done, token=Token(value, call, started_at, started_at + expires_in), suspicion=None)


def failed(credential: Credential, call: int, failure: Failure, not_before: float, fingerprint: str) -> Credential:
    """WeChat did not give a token; the one we hold stays as it was."""
    return replace(
        _closed(credential, call),
        failures=credential.failures + 1,
        failure=failure,
        not_before=max(not_before, credential.not_before),
        fingerprint=fingerprint,
    )


def forgiven(credential: Credential, fingerprint: str) -> Credential | None:
    """Drop a pause that was about another AppSecret than the one in use now; None where there is nothing to drop."""
    if credential.failure is None or credential.fingerprint == fingerprint:
        return None
    return replace(credential, failures=0, failure=None, not_before=NEVER)


def outlives(endpoint: Endpoint, policy: Policy, *, force: bool) -> float:
    """Seconds that a token outlives the call which replaces it (wechat.md §1).

    The stable endpoint replaces none before its time, unless it is forced to, and then at once. WeCom and tickets none.
    """
    if endpoint is Endpoint.STABLE and force:
        return 0.0
    return policy.overlap if endpoint is Endpoint.TOKEN else math.inf


def lost(credential: Credential, started_at: float, outlives: float) -> Credential:
    """A call's answer is not known. It may have minted: what we hold may be dead `outlives` seconds after its start."""
    if outlives == math.inf or credential.token is None or credential.refused:
        return credential
    earlier, safe_until = credential.suspicion, started_at + outlives
    if earlier is None:
        return replace(credential, suspicion=Suspicion(Doubt.LOST_ANSWER, started_at, safe_until))
    if earlier.doubt is Doubt.CLOCK:  # which nothing but another token ends
        return credential
    # One generation only: the first loss counts.
    return replace(credential, suspicion=Suspicion(Doubt.LOST_ANSWER, started_at, min(safe_until, earlier.safe_until)))


def deposed(credential: Credential, started_at: float, answered_at: float, outlives: float) -> Credential | None:
    """A call of ours that another process took for dead may have minted, and pushed out what is held now.

    It may have done so at any time until its answer came: so long the doubt lasts, and so early the token may die.
    None where it cannot have: the token held was asked for after our answer had come.
    """
    token = credential.token
    if token is None or token.requested_at > answered_at:
        return None
    doubted = lost(credential, max(token.requested_at, started_at), outlives)
    if doubted is credential or doubted.suspicion is None:
        return None
    return replace(doubted, suspicion=replace(doubted.suspicion, since=answered_at))


def is_older(one: Credential, other: Credential) -> bool:
    """Whether `one` holds an older token than `other`, or none: by the calls that brought them, across epochs by time."""
    if one.token is None or other.token is None:
        return one.token is None and other.token is not None
    if one.epoch == other.epoch:
        return one.token.call < other.token.call
    if one.token.value == other.token.value:  # given back under another number; read again, it looks a little older
        return False
    return one.token.requested_at < other.token.requested_at


def transplanted(stored: Credential, memory: Credential, number: int = 0) -> Credential | None:
    """What a store that lost our token should hold; None where it holds one as new.

    `number` is what the token's call is called in another epoch than it was made in.
    """
    if memory.token is None or not is_older(stored, memory):
        return None
    is_same = memory.epoch == stored.epoch
    call = memory.token.call if is_same else number
    # A call that was reserved after the token's is still under way, in another process's hands.
    is_open = is_same and stored.reserved_call is not None and stored.reserved_call > call
    token, called_at = replace(memory.token, call=call), max(stored.called_at, memory.called_at)
    reserved_call = stored.reserved_call if is_open else None
    return replace(memory, epoch=stored.epoch, token=token, called_at=called_at, reserved_call=reserved_call)


def of_unknown_age(credential: Credential, now: float) -> Credential:
    """No clock can say how old the token is."""
    if credential.token is None or credential.refused:
        return credential
    return replace(credential, suspicion=Suspicion(Doubt.CLOCK, now, now))


def begin_check(credential: Credential, version: str | None, policy: Policy, now: float) -> Credential | None:
    """Claim the right to one verification of `version`; None where it was replaced, or checked a moment ago."""
    if credential.version != version or now < credential.checked_at + policy.verify_gap:
        return None
    return replace(credential, checked_at=now)


def found_alive(credential: Credential, version: str | None, policy: Policy, now: float) -> Credential | None:
    """WeChat accepts the token. That ends a doubt only when the overlap is over, for until then it may be a dying one."""
    suspicion = credential.suspicion
    if credential.version != version or suspicion is None or suspicion.doubt is not Doubt.LOST_ANSWER:
        return None
    return replace(credential, suspicion=None) if now >= _overlap_over(suspicion, policy) else None


def found_dead(
    credential: Credential, version: str | None, now: float, wall: float, endpoint: Endpoint = Endpoint.TOKEN
) -> Credential | None:
    """WeChat refuses the token. Where nothing of ours explains that, somebody else may be calling the endpoint."""
    token = credential.token
    if credential.version != version or token is None or credential.refused:
        return None
    dead = replace(credential, suspicion=Suspicion(Doubt.REFUSED, now, now))
    unexplained = credential.suspicion is None and now < token.expires_at - JITTER * token.lifetime
    return replace(dead, rivalry=credential.rivalry.again(wall)) if unexplained and endpoint in MORTAL else dead


def _closed(credential: Credential, call: int) -> Credential:
    return replace(credential, reserved_call=None) if credential.reserved_call == call else credential
