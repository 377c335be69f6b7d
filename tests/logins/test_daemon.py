"""Logins for real: a daemon, the sandbox, its secret file."""

from pathlib import Path

from tests.harness.doubles import APPID, CANARY
from tests.harness.processes import House, until

SITE = """
[apps.site]
appid = "wxsite0123456789"
secret_file = "{secret}"
endpoint = "none"
"""


def code(house: House, appid: str, kind: str = "web") -> str:
    return str(house.control("/code", {"appid": appid, "kind": kind})["code"])


def test_an_app_without_a_token_logs_in_and_finds_its_new_secret_by_itself(tmp_path: Path) -> None:
    house, secret, appid = House(tmp_path), tmp_path / "site.secret", "wxsite0123456789"
    secret.write_text(f"{CANARY}-old")
    secret.chmod(0o600)
    with house.sandboxed():
        house.configure(more=SITE.format(secret=secret))
        # By the first login the sandbox learns the secret; the broker is given another.
        house.control("/code", {"appid": appid})
        with house.serving() as daemon:
            until(lambda: house.get("/readyz")[0] == 200, "ready")

            def log_in(given: str) -> dict[str, object]:
                status, answer = house.post("/v1/logins/site", {"kind": "web", "code": given})
                assert status == 200
                return dict(answer)

            assert "openid" in log_in(code(house, appid))
            house.control("/secret", {"appid": appid, "secret": f"{CANARY}-new"})
            secret.write_text(f"{CANARY}-new")
            given = code(house, appid)
            assert log_in(given)["errcode"] == 40125  # passed on, never asked again for the caller
            until(
                lambda: "secret-changed" in (tmp_path / "daemon.log").read_text(),
                "the file was read again",
            )
            assert "openid" in log_in(given)
            _, status = house.get("/v1/status")
            site = next(app for app in status["apps"] if app["app"] == "site")
            assert site["logins"]["outcomes"] == {"errcode 40125": 1, "good": 2}
            assert site["logins"]["news"] is None
            assert daemon.end() == 0
        assert [call["appid"] for call in house.calls()] == [APPID]
    assert CANARY not in (tmp_path / "daemon.log").read_text()
