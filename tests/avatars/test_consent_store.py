"""What is kept of people: in a private file, sealed where there is a key, deleted when deleted."""

import os
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from broker.avatars.consent.state import MOST_USED, STATE_S, StatePurpose, States
from broker.avatars.consent.store import (
    Consent,
    ConsentFile,
    ConsentStoreError,
    ConsentStoreRefused,
    as_export,
)
from tests.harness.doubles import CANARY, ManualClock

NOW = 1_800_000_000
KEY, OLDER = "k" * 32, "o" * 32
URL = "https://thirdwx.qlogo.cn/mmopen/abc/132"

Opened = Callable[..., ConsentFile]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "consent.db"


def consent(openid: str = "oAlice", agreed_at: int = NOW, days: int = 1) -> Consent:
    return Consent(openid, URL, agreed_at, "v" * 12, "follower", agreed_at + days * 86_400)


def kept(path: Path, key: str | None = None, previous: str | None = None) -> list[str]:
    file = ConsentFile.open(path, key, previous)
    try:
        return sorted(one.openid for one in file.all(NOW))
    finally:
        file.close()


def fill(path: Path, key: str | None, *openids: str) -> None:
    file = ConsentFile.open(path, key)
    for openid in openids:
        file.keep(consent(openid), "the text")
    file.close()


# --- the file -------------------------------------------------------------------------------------


def test_only_its_owner_reads_the_file(path: Path) -> None:
    before = os.umask(0)
    try:
        fill(path, None, "oAlice")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    kept(path)
    assert path.stat().st_mode & 0o777 == 0o600


def test_nothing_lies_beside_it(path: Path) -> None:
    fill(path, KEY, "oAlice", "oBob")
    assert list(path.parent.iterdir()) == [path]


def test_a_link_and_a_directory_that_others_write_to_are_refused(path: Path) -> None:
    path.symlink_to("/etc/hostname")
    with pytest.raises(ConsentStoreRefused, match=r"avatars\.consent\.store: .* symbolic link"):
        ConsentFile.open(path)
    path.unlink()
    path.parent.chmod(0o777)
    with pytest.raises(ConsentStoreRefused, match="everybody may write"):
        ConsentFile.open(path)


def test_what_is_no_database_is_an_error_without_a_person_in_it(path: Path) -> None:
    path.write_bytes(b"this is no database at all" * 100)
    with pytest.raises(ConsentStoreError, match="not a database"):
        ConsentFile.open(path)


# --- deleting deletes -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["forget", "forget_all", "expire", "again"])
def test_nothing_of_a_deleted_person_is_left_in_the_file(path: Path, how: str) -> None:
    file = ConsentFile.open(path)
    one = replace(consent(f"o{CANARY}"), headimgurl=f"{URL}/{CANARY}url")
    file.keep(one, "the text")
    assert CANARY.encode() in path.read_bytes()
    if how == "forget":
        assert file.forget([one.openid], "withdrawn", NOW) == 1
    elif how == "forget_all":
        assert file.forget_all(NOW) == 1
    elif how == "expire":
        assert file.expire(NOW + 86_400) == 1
    else:
        file.keep(replace(one, headimgurl=URL), "the text")
    assert f"{CANARY}url".encode() not in path.read_bytes()
    assert (one.openid.encode() in path.read_bytes()) is (how == "again")
    file.close()


def test_a_person_is_there_within_their_time_only(path: Path) -> None:
    file = ConsentFile.open(path)
    file.keep(consent(), "the text")
    end = NOW + 86_400
    assert list(file.find(["oAlice"], end - 1)) == ["oAlice"]
    assert file.find(["oAlice"], end) == {}
    assert (file.number(end - 1), file.number(end)) == (1, 0)
    assert file.expire(end - 1) == 0
    assert file.expire(end) == 1
    file.close()


def test_only_older_consents_are_deleted_where_that_is_asked(path: Path) -> None:
    file = ConsentFile.open(path)
    file.keep(consent(), "the text")
    assert file.forget(["oAlice"], "revoked", NOW, NOW - 1) == 0
    assert file.forget(["oAlice"], "revoked", NOW, NOW) == 1
    file.close()


def test_thousands_are_found_and_deleted(path: Path) -> None:
    file = ConsentFile.open(path, KEY)
    names = [f"o{number}" for number in range(1200)]
    with file._transaction():
        for name in names:
            file._write(consent(name))
    assert len(file.find([*names, "oNobody"], NOW)) == 1200
    assert file.forget(names, "unfollowed", NOW) == 1200
    file.close()


def test_a_consent_that_was_taken_back_is_not_written_again(path: Path) -> None:
    file = ConsentFile.open(path)
    first = consent()
    file.keep(first, "the text")
    assert file.update(replace(first, headimgurl=URL + "2"))
    file.forget(["oAlice"], "withdrawn", NOW)
    assert not file.update(first)
    file.keep(consent(agreed_at=NOW + 5), "the text")
    assert not file.update(first), "it is another consent by now"
    assert file.find(["oAlice"], NOW)["oAlice"].agreed_at == NOW + 5
    file.close()


# --- sealed ---------------------------------------------------------------------------------------


def test_with_a_key_nothing_of_a_person_can_be_read(path: Path) -> None:
    fill(path, KEY, "oAlice")
    content = path.read_bytes()
    for word in (b"oAlice", URL.encode(), b"thirdwx"):
        assert word not in content
    assert kept(path, KEY) == ["oAlice"]


def test_another_key_is_refused_and_harms_nothing(path: Path) -> None:
    fill(path, KEY, "oAlice")
    for other in (OLDER, None):
        with pytest.raises(ConsentStoreRefused, match="sealed with another key"):
            ConsentFile.open(path, other)
    assert kept(path, KEY) == ["oAlice"]


def test_what_was_plain_is_sealed_when_a_key_is_configured(path: Path) -> None:
    fill(path, None, "oAlice", "oBob")
    assert kept(path, KEY) == ["oAlice", "oBob"]
    assert b"oAlice" not in path.read_bytes()
    assert kept(path, KEY) == ["oAlice", "oBob"]


def test_a_key_is_changed_with_the_previous_one(path: Path) -> None:
    fill(path, OLDER, "oAlice", "oBob")
    assert kept(path, KEY, OLDER) == ["oAlice", "oBob"]
    assert kept(path, KEY) == ["oAlice", "oBob"]
    with pytest.raises(ConsentStoreRefused):
        ConsentFile.open(path, OLDER)


def test_a_row_cannot_be_put_in_anothers_place(path: Path) -> None:
    fill(path, KEY, "oAlice", "oBob")
    with sqlite3.connect(path, isolation_level=None) as db:
        names = [row[0] for row in db.execute("select id from consents")]
        (person,) = db.execute("select person from consents where id = ?", names[:1]).fetchone()
        db.execute("update consents set person = ? where id = ?", (person, names[1]))
    db.close()
    file = ConsentFile.open(path, KEY)
    (one,) = file.all(NOW)
    assert one.openid in {"oAlice", "oBob"}, "the forged row is no row"
    assert list(file.find(["oAlice", "oBob"], NOW)) == [one.openid]
    file.close()


@pytest.mark.parametrize("person", ["", "{}", "[]", "null", '{"openid": "oAlice"}', "{"])
def test_a_damaged_row_takes_no_other_along(path: Path, person: str) -> None:
    fill(path, None, "oAlice", "oBob")
    with sqlite3.connect(path, isolation_level=None) as db:
        db.execute("update consents set person = ? where id = 'oAlice'", (person,))
    db.close()
    file = ConsentFile.open(path)
    assert list(file.find(["oAlice", "oBob"], NOW)) == ["oBob"]
    assert [one.openid for one in file.all(NOW)] == ["oBob"]
    assert file.forget(["oAlice"], "withdrawn", NOW) == 1
    file.close()


# --- proof ----------------------------------------------------------------------------------------


def test_counts_and_texts_are_kept_as_proof_without_anybody_in_them(path: Path) -> None:
    file = ConsentFile.open(path)
    for openid in ("oAlice", "oBob", "oCarol"):
        file.keep(consent(openid), "the text")
    file.keep(replace(consent("oDave"), text_version="w" * 12), "another text")
    file.forget(["oAlice", "oNobody"], "withdrawn", NOW)
    file.forget(["oNobody"], "withdrawn", NOW)
    file.forget(["oBob"], "revoked", NOW + 86_400)
    file.forget_all(NOW + 86_400)
    assert file.days() == [
        ("2027-01-15", "agreed", 4),
        ("2027-01-15", "withdrawn", 1),
        ("2027-01-16", "forgotten", 2),
        ("2027-01-16", "revoked", 1),
    ]
    assert file.texts() == {"v" * 12: "the text", "w" * 12: "another text"}
    assert b"oAlice" not in path.read_bytes()
    file.close()


def test_the_export_holds_all_that_is_kept_but_no_secret() -> None:
    one = replace(consent(), refresh_token=CANARY, asked_at=NOW)
    shown = as_export(one)
    assert shown == {
        "openid": "oAlice",
        "headimgurl": URL,
        "agreed_at": "2027-01-15T08:00:00Z",
        "text_version": "v" * 12,
        "source": "follower",
        "expires_at": "2027-01-16T08:00:00Z",
        "refresh_token": "kept, sealed",
    }
    assert "oAlice" not in repr(one)
    assert CANARY not in repr(one)


# --- the state ------------------------------------------------------------------------------------

VERSION = "0123456789ab"


def test_a_state_fits_what_wechat_carries() -> None:
    states = States(ManualClock().now)
    for purpose in StatePurpose:
        state = states.make(purpose, "browser", VERSION)
        assert len(state) <= 128
        assert state.isascii()
        assert state.isalnum()
        assert states.open(state, "browser") == (purpose, VERSION)


def test_a_state_of_another_process_is_none() -> None:
    clock = ManualClock()
    state = States(clock.now).make(StatePurpose.AGREE, "browser", VERSION)
    assert States(clock.now).open(state, "browser") is None


def test_no_character_of_a_state_can_be_changed() -> None:
    states = States(ManualClock().now)
    state = states.make(StatePurpose.AGREE, "browser", VERSION)
    for place, char in enumerate(state):
        for other in "0aw":
            if other != char:
                bent = state[:place] + other + state[place + 1 :]
                assert states.open(bent, "browser") is None
    assert states.open(state, "") is None
    assert states.open(state, "Browser") is None
    assert states.open(state, "browser") is not None


def test_used_states_are_remembered_for_as_long_as_they_are_good_and_no_longer() -> None:
    clock = ManualClock()
    states = States(clock.now)
    state = states.make(StatePurpose.AGREE, "browser", VERSION)
    assert states.open(state, "browser")
    clock.pass_(STATE_S - 1)
    assert states.open(state, "browser") is None
    clock.pass_(1)
    assert states.open(states.make(StatePurpose.AGREE, "browser", VERSION), "browser")
    assert len(states._used) == 1


def test_where_too_many_are_used_none_is_used_twice() -> None:
    clock = ManualClock()
    states = States(clock.now)
    state = states.make(StatePurpose.AGREE, "browser", VERSION)
    assert states.open(state, "browser")
    states._used |= {str(number): clock.now() + STATE_S for number in range(MOST_USED)}
    fresh = states.make(StatePurpose.AGREE, "browser", VERSION)
    assert states.open(fresh, "browser") is None
    assert states.open(state, "browser") is None
    clock.pass_(STATE_S)
    assert states.open(states.make(StatePurpose.AGREE, "browser", VERSION), "browser")
