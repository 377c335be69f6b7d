"""Real daemons, one for each of several hosts, that share one database.

They have one token, one ledger and one budget.
"""

import json
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.harness.cluster import Cluster, cluster
from tests.harness.doubles import CANARY
from tests.harness.places import ROOT
from tests.harness.processes import House, Process, run, until


@contextmanager
def brokers(
    home: Path, database: str, number: int, policy: str = "", **environ: str
) -> Iterator[list[tuple[House, Process]]]:
    """So many daemons with a sandbox between them."""
    houses = [House(home / f"host{n}") for n in range(number)]
    with ExitStack() as stack:
        for n, house in enumerate(houses):
            house.home.mkdir()
            if n == 0:
                stack.enter_context(house.sandboxed())
            house.sandbox = houses[0].sandbox
            house.configure(policy=policy)
        shared = {"TOKEN_BROKER_STORE__URL": database, **environ}
        with ThreadPoolExecutor(number) as pool:
            starts = [
                pool.submit(
                    stack.enter_context,
                    house.serving(TOKEN_BROKER_STORE__NODE=f"host{n}", **shared),
                )
                for n, house in enumerate(houses)
            ]
            yield [(house, start.result()) for house, start in zip(houses, starts, strict=True)]


def test_fifty_callers_at_a_cold_start_on_each_of_three_hosts_cause_one_call(
    tmp_path: Path, database: str
) -> None:
    with brokers(tmp_path, database, 3) as hosts, ThreadPoolExecutor(150) as pool:
        asked = [pool.submit(house.get, "/v1/tokens/main") for house, _ in hosts for _ in range(50)]
        answers = [it.result() for it in asked]
        assert {status for status, _ in answers} == {200}
        assert len({answer["access_token"] for _, answer in answers}) == 1
        assert len(hosts[0][0].calls()) == 1


def test_a_rotation_on_one_host_reaches_the_watchers_on_all(tmp_path: Path, database: str) -> None:
    with (
        brokers(tmp_path, database, 3, policy="min_gap = 0.1") as hosts,
        ThreadPoolExecutor(3) as pool,
    ):
        first = until(
            lambda: all(house.get("/v1/tokens/main")[0] == 200 for house, _ in hosts), "all serve"
        )
        assert first
        (version,) = {house.get("/v1/tokens/main")[1]["version"] for house, _ in hosts}
        etag = f'"{version}"'
        watching = [
            pool.submit(house.get, "/v1/tokens/main?wait=15", **{"If-None-Match": etag})
            for house, _ in hosts
        ]
        until(lambda: hosts[1][0].post("/v1/tokens/main/refresh")[0] == 200, "min_gap is over")
        heard = {it.result()[1]["version"] for it in watching}
        assert heard == {hosts[1][0].get("/v1/tokens/main")[1]["version"]} != {version}
        assert len(hosts[0][0].calls()) == 2


def test_the_holder_is_killed_and_another_host_goes_on(tmp_path: Path, database: str) -> None:
    """Its reservation is nobody's after the call's timeout and some slack; nobody calls before."""
    policy = "min_gap = 0.1\nmax_backoff = 1\noverlap = 5"
    with brokers(tmp_path, database, 2, policy=policy) as hosts:
        (one, process), (other, _) = hosts
        until(
            lambda: one.get("/v1/tokens/main")[0] == other.get("/v1/tokens/main")[0] == 200,
            "both serve",
        )
        one.control("/faults", {"kind": "silence", "times": 1})
        with ThreadPoolExecutor(1) as pool:
            pool.submit(
                until, lambda: one.post("/v1/tokens/main/refresh")[0] == 200, "min_gap is over"
            )
            until(lambda: len(one.calls()) == 2, "the call is under way")
            process.kill()
        status, answer = other.post("/v1/tokens/main/refresh")
        assert (status, answer["code"]) == (429, "refresh-throttled")
        until(
            lambda: len(other.calls()) == 3, "the other refreshes, since that call may have minted"
        )
        seen = dict(
            re.findall(
                r'token_broker_node_seen_ago_seconds\{node="(\w+)"\} (.+)', other.get("/metrics")[1]
            )
        )
        assert seen.keys() == {"host0", "host1"}
        assert float(seen["host1"]) < 5 < float(seen["host0"])


def test_an_inline_password_is_refused_and_the_passfiles_never_appears(
    tmp_path: Path, cluster: Cluster
) -> None:
    house = House(tmp_path)
    name = cluster.database(owner="guarded")
    house.configure()
    where = f"127.0.0.1:{cluster.port}/{name}"
    done = run(
        "check",
        "--config",
        str(house.config),
        TOKEN_BROKER_STORE__URL=f"postgresql://guarded:{CANARY}@{where}",
    )
    assert done.returncode == 78
    assert "passfile" in done.stderr
    assert CANARY not in done.stderr
    passfile = tmp_path / "pgpass"
    passfile.write_text(f"*:*:*:*:{CANARY}-postgres-password\n")
    url = f"postgresql://guarded@{where}"
    passfile.chmod(0o644)
    done = run(
        "check",
        "--config",
        str(house.config),
        TOKEN_BROKER_STORE__URL=url,
        PGPASSFILE=str(passfile),
    )
    assert (done.returncode, "mode 600" in done.stderr) == (78, True), done.stderr
    passfile.chmod(0o600)
    done = run(
        "check",
        "--config",
        str(house.config),
        TOKEN_BROKER_STORE__URL=url,
        PGPASSFILE=str(passfile),
    )
    assert done.returncode == 0, done.stderr
    assert cluster.sql(
        "select count(*) from pg_namespace where nspname = 'token_broker'", name
    ) == [(0,)]
    with house.sandboxed():
        house.configure()
        with house.serving(TOKEN_BROKER_STORE__URL=url, PGPASSFILE=str(passfile)) as daemon:
            until(lambda: house.get("/v1/tokens/main")[0] == 200, "it serves")
            said = (
                (tmp_path / "daemon.log").read_text()
                + str(house.get("/v1/status"))
                + str(house.get("/health"))
            )
            proc = Path(f"/proc/{daemon.popen.pid}")
            said += "".join((proc / file).read_text() for file in ("cmdline", "environ"))
    assert f"{CANARY}-postgres-password" not in said
    cluster.sql(f"drop database {name} with (force)")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ("update token_broker.meta set value = '99' where key = 'schema'", "newer"),
        ("alter table token_broker.meta rename to other", "not ours"),
    ],
)
def test_tables_that_are_not_this_versions_are_refused_untouched(
    tmp_path: Path, cluster: Cluster, database: str, spoil: str, says: str
) -> None:
    house, name = House(tmp_path), database.rpartition("/")[2]
    house.configure()
    with house.serving(TOKEN_BROKER_STORE__URL=database):
        pass
    cluster.sql(spoil, name)
    for command in ("serve", "check"):
        done = run(command, "--config", str(house.config), TOKEN_BROKER_STORE__URL=database)
        assert done.returncode == 78
        assert says in done.stderr
        assert "127.0.0.1" not in done.stderr


def test_a_role_with_the_least_of_rights_is_told_what_it_lacks_and_serves_when_it_has_it(
    tmp_path: Path, cluster: Cluster
) -> None:
    house, name = House(tmp_path), cluster.database(owner="postgres")
    url = cluster.dsn(name)
    with house.sandboxed():
        house.configure()
        done = run("check", "--config", str(house.config), TOKEN_BROKER_STORE__URL=url)
        assert (done.returncode, "schema.sql" in done.stderr) == (78, True), done.stderr
        assert (
            run("serve", "--config", str(house.config), TOKEN_BROKER_STORE__URL=url).returncode
            == 78
        )
        cluster.sql((ROOT / "broker/store/postgres/schema.sql").read_text(), name)
        cluster.sql("revoke delete on token_broker.calls from token_broker", name)
        done = run("check", "--config", str(house.config), TOKEN_BROKER_STORE__URL=url)
        assert (done.returncode, "delete on token_broker.calls" in done.stderr) == (
            78,
            True,
        ), done.stderr
        cluster.sql("grant delete on token_broker.calls to token_broker", name)
        assert (
            run("check", "--config", str(house.config), TOKEN_BROKER_STORE__URL=url).returncode == 0
        )
        with house.serving(TOKEN_BROKER_STORE__URL=url):
            until(lambda: house.get("/v1/tokens/main")[0] == 200, "it serves")
    cluster.sql(f"drop database {name} with (force)")


def test_a_database_that_is_not_there_is_said_in_a_sentence_without_its_address(
    tmp_path: Path,
) -> None:
    house = House(tmp_path)
    where = "postgresql://somebody@127.0.0.1:9/broker"
    with house.sandboxed():
        house.configure()
        done = run("check", "--config", str(house.config), TOKEN_BROKER_STORE__URL=where)
        with house.serving(TOKEN_BROKER_STORE__URL=where):  # it is up, and says what is missing
            assert house.get("/livez")[0] == 200
            assert house.get("/readyz")[0] == 503
            health = json.dumps(house.get("/health")[1])
            assert house.get("/v1/tokens/main")[0] == 503
        assert house.calls() == []
    assert done.returncode == 78
    for said in (done.stderr, health):
        assert "refuses the connection" in said
        assert "127.0.0.1:9" not in said
        assert "somebody" not in said


@pytest.mark.needs("initdb")
def test_while_the_database_is_away_memory_serves_and_says_so_and_nobody_is_called(
    tmp_path: Path,
) -> None:
    with (
        cluster() as own,
        brokers(tmp_path, own.dsn(own.database()), 2, policy="min_gap = 0.1") as hosts,
    ):
        until(
            lambda: all(house.get("/v1/tokens/main")[0] == 200 for house, _ in hosts), "all serve"
        )
        own.stop(signal.SIGQUIT)
        until(
            lambda: all("PostgreSQL" in str(house.get("/health")[1]) for house, _ in hosts),
            "the trouble is told",
        )
        for house, _ in hosts:
            held = house.get("/v1/tokens/main")
            assert held[0] == 200
            _, answer = house.post("/v1/tokens/main/refresh")
            assert answer.get("version", held[1]["version"]) == held[1]["version"], answer
        assert len(hosts[0][0].calls()) == 1
        own.start()
        until(
            lambda: not any("PostgreSQL" in str(house.get("/health")[1]) for house, _ in hosts),
            "all is well again",
        )

        def refreshed() -> bool:
            status, answer = hosts[0][0].post("/v1/tokens/main/refresh")
            return status == 200 and answer["version"] != held[1]["version"]

        until(refreshed, "a refresh is possible")
        version = hosts[0][0].get("/v1/tokens/main")[1]["version"]
        until(
            lambda: hosts[1][0].get("/v1/tokens/main")[1]["version"] == version, "which all hear of"
        )
