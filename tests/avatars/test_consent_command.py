"""`token-broker avatars` with a page that asks, and `avatars forget` and `avatars show`."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from broker.avatars.consent.store import Consent, ConsentFile
from tests.harness.crashpoints import Child, ForkedDaemon, ForkServer
from tests.harness.doubles import APPID
from tests.harness.processes import ask, run, until

ALICE, BOB, CAROL = (f"o{name:0<27}" for name in ("Alice", "Bob", "Carol"))
URL = "https://thirdwx.qlogo.cn/mmopen/abc/132"
TEXT = '{"en": "the text"}'
NOBODY = 65534


@pytest.fixture
def house(tmp_path: Path, forks: ForkServer) -> Iterator[ForkedDaemon]:
    house = ForkedDaemon(tmp_path, fork_server=forks)
    with house.simulating():
        house.configure(more=consent(house))
        yield house


def consent(house: ForkedDaemon, **keys: str) -> str:
    given = {
        "operator": "Example Ltd",
        "purpose": "to show it",
        "contact": "privacy@example.com",
        "public_url": "https://consent.example.com",
        "listen": "127.0.0.1:0",
        "store": f"{house.home}/consent.db",
        "authorize_url": f"{house.sandbox}/connect/oauth2/authorize",
        **keys,
    }
    lines = "".join(f'{name} = "{value}"\n' for name, value in given.items())
    return (
        f'[avatars]\nlisten = "127.0.0.1:0"\nbroker = "unix:{house.home}/broker.sock"\n'
        f"[avatars.consent]\nkeep_days = 30\n{lines}"
    )


def fill(house: ForkedDaemon, *openids: str) -> None:
    file = ConsentFile.open(house.home / "consent.db")
    now = int(time.time())
    for openid in openids:
        file.keep(Consent(openid, URL, now, "v" * 12, "follower", now + 86_400), TEXT)
    file.close()


def kept(house: ForkedDaemon) -> list[str]:
    file = ConsentFile.open(house.home / "consent.db")
    found = sorted(one.openid for one in file.all(time.time()))
    file.close()
    return found


def command(house: ForkedDaemon, *words: str) -> Any:
    return run("avatars", *words, "--config", str(house.config))


@contextmanager
def showing(house: ForkedDaemon) -> Iterator[tuple[str, str, Child]]:
    """The companion, running: where, where it asks, and the process."""
    words = ("avatars", "--config", str(house.config))
    with house.fork_server.child(house.home / "avatars.log", *words) as companion:
        line = companion.first_line()
        base, _, public = line.split("serves on ")[1].partition(", asks for consent on ")
        yield base.strip(), public.strip(), companion


# --- running --------------------------------------------------------------------------------------


def test_the_page_has_a_listener_of_its_own(house: ForkedDaemon) -> None:
    with house.living(), showing(house) as (base, public, companion):
        until(lambda: ask("GET", f"{base}/readyz")[0] == 200, "ready")
        for host in ("consent.example.com", "127.0.0.1"):
            assert ask("GET", f"{public}/consent", headers={"Host": host})[0] == 200
        assert ask("GET", f"{base}/consent")[0] == 404
        assert ask("GET", f"{public}/v1/avatars")[0] == 404
        assert ask("GET", f"{public}/consent", headers={"Host": "evil.example"})[0] == 403
        assert companion.end() == 0
    assert (house.home / "consent.db").stat().st_mode & 0o777 == 0o600


def test_a_taken_port_is_complained_about_with_its_key(house: ForkedDaemon) -> None:
    with showing(house) as (base, public, _):
        for taken, key in ((base, "avatars.listen"), (public, "avatars.consent.listen")):
            where = taken.removeprefix("http://")
            more = consent(house, listen=where)
            if key == "avatars.listen":
                more = consent(house).replace("127.0.0.1:0", where, 1)
            house.configure(more=more)
            done = run("avatars", "--config", str(house.config))
            assert done.returncode == 1
            assert done.stderr.startswith(f"token-broker: {key}: {where} is taken")


def test_a_store_that_must_not_be_used_ends_with_78(house: ForkedDaemon) -> None:
    (house.home / "consent.db").symlink_to("/etc/hostname")
    done = run("avatars", "--config", str(house.config))
    assert done.returncode == 78
    assert done.stderr.startswith("token-broker: avatars.consent.store: ")
    assert "symbolic link" in done.stderr


def test_a_store_that_cannot_be_opened_leaves_the_companion_running(house: ForkedDaemon) -> None:
    (house.home / "consent.db").write_bytes(b"no database" * 1000)
    with house.living(), showing(house) as (base, _, companion):
        until(lambda: ask("GET", f"{base}/readyz")[0] == 200, "ready")
        status, page = ask("GET", f"{base}/v1/avatars?limit=6")
        assert status == 200
        assert page["avatars"][5]["status"] == "withheld"
        assert companion.end() == 0
    events = [json.loads(line)["event"] for line in companion.log.read_text().splitlines()]
    assert events == ["consent-store-failed"]


# --- forget ---------------------------------------------------------------------------------------


def test_forget_deletes_whom_it_is_told(house: ForkedDaemon) -> None:
    fill(house, ALICE, BOB, CAROL)
    done = command(house, "forget", ALICE, "oNobody")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "deleted: 1; nothing was kept of the other 1\n"
    assert kept(house) == [BOB, CAROL]
    assert ALICE.encode() not in (house.home / "consent.db").read_bytes()


def test_a_running_companion_shows_them_no_more(house: ForkedDaemon) -> None:
    with house.living(), showing(house) as (base, _, _):
        until(lambda: ask("GET", f"{base}/readyz")[0] == 200, "ready")
        openid = ask("GET", f"{base}/v1/avatars?limit=6")[1]["avatars"][5]["openid"]
        fill(house, openid)
        assert ask("GET", f"{base}/v1/avatars?limit=6")[1]["avatars"][5]["status"] == "consented"
        assert command(house, "forget", openid).returncode == 0
        assert ask("GET", f"{base}/v1/avatars?limit=6")[1]["avatars"][5]["status"] == "withheld"


@pytest.mark.parametrize(
    "content",
    [
        f"{ALICE}\n{BOB}\n",
        f"\ufeffno,OpenID,when\n1,{ALICE},2026-11-28\n2,{BOB},2026-11-28\n3,,\n",
        f"withdrawn at,user\r\n2026-11-28,{ALICE}\r\n2026-11-28,{BOB}\r\n",
        f'"{ALICE}","{BOB}"\n',
    ],
)
def test_forget_reads_the_openids_of_a_csv_file(house: ForkedDaemon, content: str) -> None:
    fill(house, ALICE, BOB, CAROL)
    path = house.home / "withdrawn.csv"
    path.write_text(content, encoding="utf-8")
    done = command(house, "forget", "--from-csv", str(path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "deleted: 2\n", "")
    assert kept(house) == [CAROL]


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "names no openid"), (b"hello,world\n", "names no openid"), (b"\xff\xfe\x00", "UTF-8")],
)
def test_a_csv_file_that_names_nobody_is_said_to(
    house: ForkedDaemon, content: bytes, said: str
) -> None:
    fill(house, ALICE)
    path = house.home / "withdrawn.csv"
    path.write_bytes(content)
    for name in (path, house.home / "missing.csv"):
        done = command(house, "forget", "--from-csv", str(name))
        assert done.returncode == 1
        assert done.stderr.startswith("token-broker: --from-csv: ")
        assert (said if name == path else "cannot be read") in done.stderr
    assert kept(house) == [ALICE]


def test_forget_all_deletes_everybody(house: ForkedDaemon) -> None:
    fill(house, ALICE, BOB)
    done = command(house, "forget", "--all")
    assert (done.returncode, done.stdout) == (0, "deleted: 2\n")
    assert kept(house) == []


@pytest.mark.parametrize("words", [(), ("--all", ALICE), ("--all", "--from-csv", "x")])
def test_forget_wants_to_know_whom_and_only_once(
    house: ForkedDaemon, words: tuple[str, ...]
) -> None:
    fill(house, ALICE)
    done = command(house, "forget", *words)
    assert done.returncode == 2
    assert "Give openids, or --from-csv FILE, or --all." in done.stderr
    assert kept(house) == [ALICE]


@pytest.mark.needs("root")
def test_root_acts_for_the_owner_of_the_file(house: ForkedDaemon) -> None:
    fill(house, ALICE, BOB)
    path = house.home / "data" / "consent.db"  # where its owner gets only within the unit
    assert house.home.stat().st_mode & 0o077 == 0
    path.parent.mkdir()
    (house.home / "consent.db").rename(path)
    for one in (path, path.parent):
        os.chown(one, NOBODY, NOBODY)
    house.configure(more=consent(house, store=str(path)))
    done = command(house, "forget", ALICE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "deleted: 1\n", "")
    assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (NOBODY, 0o600)
    path.unlink()
    path.symlink_to(house.home / "broker.db")
    os.lchown(path, NOBODY, NOBODY)
    assert command(house, "forget", ALICE).returncode == 1, "a link is not followed"
    path.unlink()
    path.touch()
    assert list(path.parent.iterdir()) == [path]


# --- show -----------------------------------------------------------------------------------------


def test_show_prints_all_that_is_kept_of_a_person(house: ForkedDaemon) -> None:
    fill(house, ALICE, BOB)
    done = command(house, "show", ALICE)
    assert (done.returncode, done.stderr) == (0, "")
    shown = json.loads(done.stdout)
    assert (shown["openid"], shown["headimgurl"], shown["source"]) == (ALICE, URL, "follower")
    assert shown.keys() == {
        "openid",
        "headimgurl",
        "agreed_at",
        "text_version",
        "source",
        "expires_at",
    }
    done = command(house, "show", CAROL)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "token-broker: nothing is kept of this openid\n"


def test_show_prints_the_proof_which_names_nobody(house: ForkedDaemon) -> None:
    fill(house, ALICE, BOB)
    command(house, "forget", ALICE)
    done = command(house, "show")
    assert (done.returncode, done.stderr) == (0, "")
    shown = json.loads(done.stdout)
    assert list(shown["days"].values()) == [{"agreed": 2, "forgotten": 1}]
    assert shown["texts"] == {"v" * 12: {"en": "the text"}}
    assert ALICE not in done.stdout
    assert BOB not in done.stdout


def test_without_a_file_or_without_consent_it_says_so(house: ForkedDaemon) -> None:
    done = command(house, "show", ALICE)
    assert done.returncode == 1
    assert "avatars.consent.store: " in done.stderr
    assert not (house.home / "consent.db").exists()
    house.configure(more="[avatars]\n")
    done = command(house, "forget", ALICE)
    assert done.returncode == 78
    assert "avatars.consent: is not configured" in done.stderr


def test_the_configuration_may_be_named_before_or_after(house: ForkedDaemon) -> None:
    fill(house, ALICE)
    before = run("avatars", "--config", str(house.config), "show", ALICE)
    after = run("avatars", "show", ALICE, "--config", str(house.config))
    assert before.stdout == after.stdout != ""
    assert APPID not in before.stdout
