"""When something is told: held off, once, reminded, bounded, and not again after a restart."""

import pytest

from broker.notify.events import Event, StateChange
from broker.notify.plan import DAY, HOUR, MOST_AN_HOUR, Rules, ToldBefore, plan
from broker.notify.states import StateKind, TroubleState
from broker.notify.texts import TEXTS
from tests.harness.doubles import APPID, NOON

FACTS: dict[str, str | int] = {
    "appid": APPID,
    "platform": "wechat",
    "errcode": 40164,
    "ip": "203.0.113.7",
    "limit": 9,
}
GONE = TroubleState(StateKind.NO_TOKEN, "main", facts=FACTS)
RULES = Rules(hold=300, remind=DAY)


class Told:
    """A memory, looked at by hand; between two looks it is written and read, as over a restart."""

    def __init__(self, rules: Rules = RULES) -> None:
        self.text: str | None = None
        self.rules = rules
        self.began = NOON

    def at(self, seconds: float, *seen: TroubleState) -> list[tuple[StateChange, str]]:
        now = NOON + seconds
        memory = ToldBefore.read(self.text, now)
        tellings = plan(memory, seen, now, self.rules, looked_for=now - self.began)
        self.text = memory.written()
        return [(one.change, one.state.kind.value if one.state else "") for one in tellings]


def test_a_blip_tells_nobody() -> None:
    told = Told()
    assert told.at(0, GONE) == told.at(299, GONE) == []
    assert told.at(299.5) == []
    assert told.at(600, GONE) == told.at(890, GONE) == [], "it began anew"


def test_what_lasts_is_told_once_and_its_end_when_that_lasts() -> None:
    told = Told()
    assert told.at(0, GONE) == []
    assert told.at(300, GONE) == [(StateChange.ENTERED, "no-token")]
    assert told.at(310, GONE) == told.at(5000, GONE) == []
    assert told.at(5010) == told.at(5200, GONE) == told.at(5210) == []
    assert told.at(5499) == []
    assert told.at(5500) == [(StateChange.LEFT, "no-token")]
    assert told.at(5510) == told.at(90_000) == []


def test_a_reminder_comes_each_day_unless_none_is_wanted() -> None:
    told, silent = Told(), Told(Rules(hold=300, remind=0))
    for one in (told, silent):
        one.at(0, GONE)
        assert one.at(300, GONE) == [(StateChange.ENTERED, "no-token")]
    assert told.at(DAY + 299, GONE) == []
    assert told.at(DAY + 300, GONE) == [(StateChange.REMINDER, "no-token")]
    assert told.at(2 * DAY + 300, GONE) == [(StateChange.REMINDER, "no-token")]
    assert silent.at(9 * DAY, GONE) == []


def test_after_a_restart_nothing_is_over_before_we_have_looked_for_as_long() -> None:
    told = Told()
    told.at(0, GONE)
    assert told.at(300, GONE) == [(StateChange.ENTERED, "no-token")]
    told.began = NOON + 10_000
    assert told.at(10_000) == told.at(10_299) == []
    assert told.at(10_299, GONE) == [], "nor told twice"
    assert told.at(10_599) == [(StateChange.LEFT, "no-token")]


def test_at_most_twenty_an_hour_then_one_line_that_more_was_held_back() -> None:
    told = Told()
    many = [TroubleState(StateKind.SECOND_ISSUER, f"app-{n}", facts=FACTS) for n in range(50)]
    told.at(0, *many)
    first = told.at(300, *many)
    assert first == [(StateChange.ENTERED, "second-issuer")] * MOST_AN_HOUR + [
        (StateChange.HELD_BACK, "")
    ]
    assert told.at(310, *many) == told.at(300 + HOUR - 1, *many) == []
    assert len(told.at(300 + HOUR, *many)) == MOST_AN_HOUR + 1
    assert told.at(300 + 2 * HOUR, *many) == [(StateChange.ENTERED, "second-issuer")] * 10


def test_two_brokers_tell_it_once_between_them_and_neither_ends_what_the_other_sees() -> None:
    told = Told(Rules(hold=300, remind=DAY, grace=30, broker="one"))
    assert told.at(0, GONE) == []
    assert told.at(20) == [], "the other one does not see it"
    assert told.at(30, GONE) == []
    assert told.at(300, GONE) == [(StateChange.ENTERED, "no-token")]
    assert told.at(301, GONE) == []
    assert told.at(590) == told.at(595, GONE) == told.at(880) == []
    assert told.at(895) == [(StateChange.LEFT, "no-token")]


def test_a_broker_does_not_end_the_store_trouble_of_another() -> None:
    told = Told(Rules(hold=300, remind=0, grace=30, broker="one"))
    theirs = TroubleState(StateKind.STORE_FAILING, about="two")
    told.at(0, theirs)
    assert told.at(300, theirs) == [(StateChange.ENTERED, "store-failing")]
    assert told.at(5000) == []
    assert told.at(300 + DAY) == [(StateChange.LEFT, "store-failing")]


def test_a_clock_that_is_set_back_does_not_silence_anything() -> None:
    told = Told()
    told.at(DAY, GONE)
    assert told.at(0, GONE) == told.at(299, GONE) == []
    assert told.at(300, GONE) == [(StateChange.ENTERED, "no-token")]


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"states": [{}]}', '{"sent": ["x"]}', "3"])
def test_what_is_no_memory_is_none(text: str) -> None:
    assert ToldBefore.read(text, NOON) == ToldBefore()


@pytest.mark.parametrize("kind", StateKind)
@pytest.mark.parametrize("language", TEXTS)
@pytest.mark.parametrize("change", [StateChange.ENTERED, StateChange.LEFT, StateChange.REMINDER])
def test_each_state_has_words_in_each_language(
    kind: StateKind, language: str, change: StateChange
) -> None:
    state = TroubleState(kind, "main", "the-other", FACTS)
    event = Event(change, NOON, state, NOON - 300, "node-1", language)
    assert event.title.startswith("[token-broker] ")
    assert "{" not in event.title + event.text
    if change is not StateChange.LEFT and kind is StateKind.IP_NOT_ALLOWED:
        assert "203.0.113.7" in event.text
    assert (event.severity == "info") == (change is StateChange.LEFT)


@pytest.mark.parametrize("language", TEXTS)
@pytest.mark.parametrize("change", [StateChange.HELD_BACK, StateChange.TEST])
def test_what_is_about_no_state_has_words_too(change: StateChange, language: str) -> None:
    event = Event(change, NOON, language=language)
    assert event.title
    assert event.text
    assert event.as_json()["since"] is None
