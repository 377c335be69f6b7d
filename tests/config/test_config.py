"""The configuration is read once, into settings that cannot be changed.

A wrong one is refused with every reason at once. Secrets are never shown.
"""

import hashlib
import os
import pickle
import re
import subprocess
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import pytest

from broker.config.load import ConfigError, load, load_avatars, load_server
from broker.config.schema import TABLES, ConsentTable, PolicyTable, SinkTable
from broker.config.settings import FileSinkSettings, RedisSinkSettings, Settings
from broker.config.sources import DEFAULT_PATH, find_path
from broker.core.credential import Account, Endpoint, Policy
from broker.core.secret import Secret
from broker.system.address import Address
from tests.harness.certificates import Authority
from tests.harness.places import DEPLOY

EXAMPLE = DEPLOY / "config.example.toml"
CANARY = "CANARY0123456789abcdef"
APP = '[apps.main]\nappid = "wx0123456789abcdef"\nsecret_file = "./main.secret"\n'
NOBODY = 65534

Check = Callable[..., Settings]
Wrong = Callable[..., tuple[str, ...]]

only_root = pytest.mark.needs("root")  # only root can give files away


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def written(text: str, mode: int = 0o600, name: str = "config.toml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        path.chmod(mode)
        return path

    written("s3cret\n", name="main.secret")
    return written


@pytest.fixture
def read(write: Callable[..., Path]) -> Check:
    """Load a configuration from its text; variables are keyword arguments."""

    def settings(text: str = APP, **environ: str) -> Settings:
        return load(write(text), environ)

    return settings


@pytest.fixture
def wrong(read: Check) -> Wrong:
    """Return the errors of a configuration that must have some."""

    def errors(text: str = APP, **environ: str) -> tuple[str, ...]:
        with pytest.raises(ConfigError) as caught:
            read(text, **environ)
        assert str(caught.value) == "\n".join(caught.value.errors)
        return caught.value.errors

    return errors


# --- what a good configuration gives --------------------------------------------------------------


def test_one_app_with_a_secret_is_enough_and_everything_else_has_its_default(
    read: Check,
) -> None:
    settings = read(APP)
    assert settings.server.listen == (Address("tcp", "127.0.0.1", 8765),)
    assert settings.server.allowed_hosts == ()
    assert settings.wechat.api_base == "https://api.weixin.qq.com"
    assert settings.wechat.timeout == 10
    assert settings.policy == Policy()
    assert dict(settings.apps) == {
        "main": Account("main", "wx0123456789abcdef", Secret("s3cret"), Endpoint.TOKEN, 2000)
    }
    assert not settings.clients
    assert settings.avatars is None


def test_every_field_of_the_policy_can_be_configured() -> None:
    assert set(PolicyTable.model_fields) == {field.name for field in fields(Policy)}


def test_the_example_is_valid_as_it_stands_once_the_secret_exists(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    path = write(EXAMPLE.read_text().replace("/etc/token-broker/main.secret", "./main.secret"))
    settings = load(path, {"STATE_DIRECTORY": str(tmp_path)})
    assert settings.policy == Policy()


def test_the_example_shows_every_key_with_its_default(
    write: Callable[..., Path], read: Check, tmp_path: Path
) -> None:
    text = (
        EXAMPLE.read_text().replace("/etc/token-broker/", "./").replace("/run/token-brokerd/", "./")
    )
    write("http://me:pw@proxy:3128", name="proxy.url")
    Authority(tmp_path)  # writes ca.pem
    bare = load(write(text), {"STATE_DIRECTORY": "/var/lib/token-broker"})
    shown_text = re.sub(r"^#(?=[a-z\[])", "", text, flags=re.MULTILINE)
    shown_text = shown_text.replace('proxy = ""', "")  # either this or proxy_file
    shown = tomllib.loads(shown_text)
    for name in ("orders", "avatars", "store", "store.old"):
        write(f"{name}-0123456789abcdef", name=f"{name}.key")
    write("redis://127.0.0.1", name="redis.url")
    write("https://example.org/hook", name="notify.urls")
    write("#!/bin/sh", name="notify").chmod(0o700)
    full = load(write(shown_text), {})
    for section in ("server", "policy", "proxy", "apps"):
        assert getattr(full, section) == getattr(bare, section)
    assert replace(full.wechat, way_out=bare.wechat.way_out) == bare.wechat
    assert full.wechat.way_out.ca_file == tmp_path / "ca.pem"
    assert (full.store.url, full.store.path) == (bare.store.url, bare.store.path)
    avatars = read(f'{APP}[avatars]\nkey_file = "./avatars.key"').avatars
    assert full.avatars is not None
    assert avatars is not None
    assert full.avatars == replace(avatars, wechat=full.wechat, consent=full.avatars.consent)
    assert set(shown["avatars"]["consent"]) == set(ConsentTable.model_fields)
    assert full.clients["orders"].scopes == {"read", "report"}
    assert (full.notify.hold, full.notify.remind) == (bare.notify.hold, bare.notify.remind)
    assert full.notify.language == bare.notify.language
    assert [type(sink) for sink in full.sinks["main"]] == [FileSinkSettings, RedisSinkSettings]
    sink_keys = set().union(*shown["apps"]["main"]["sinks"])
    assert sink_keys | {"url"} == set(SinkTable.model_fields)
    for section, table in TABLES.items():
        keys = (
            set().union(*shown[section].values())
            if section in ("apps", "clients")
            else set(shown[section]) | ({"proxy"} if section == "wechat" else set())
        )
        assert keys | {"secret", "key_sha256"} >= set(table.model_fields), section


def test_integers_stand_for_floats_and_the_rest_of_a_policy_is_read_as_written(read: Check) -> None:
    policy = read(APP + "[policy]\ntick = 1\nrefresh_fraction = 0.25\nreport_quota = 0\n").policy
    assert (policy.tick, policy.refresh_fraction, policy.report_quota) == (1, 0.25, 0)


def test_nothing_in_the_settings_can_be_changed(read: Check) -> None:
    settings = read(APP)
    with pytest.raises(FrozenInstanceError):
        settings.wechat.timeout = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        settings.apps["other"] = settings.apps["main"]  # type: ignore[index]


def test_settings_print_without_secrets_and_key_hashes(read: Check) -> None:
    digest = hashlib.sha256(b"key").hexdigest()
    settings = read(f'{APP}[clients.orders]\nkey_sha256 = "{digest}"\n')
    assert "s3cret" not in repr(settings)
    assert digest not in repr(settings)
    with pytest.raises(TypeError):
        pickle.dumps(settings.apps["main"])


def test_a_thousand_apps_load_at_once(read: Check) -> None:
    apps = (
        f'[apps.a{n}]\nappid = "wx{n:04}"\nsecret_file = "./main.secret"\n' for n in range(1000)
    )
    started = time.perf_counter()
    assert len(read("".join(apps)).apps) == 1000
    assert time.perf_counter() - started < 2


# --- where it is read from ------------------------------------------------------------------------


def test_the_path_is_the_argument_then_the_variable_then_etc(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    assert Path("/etc/token-broker/config.toml") == DEFAULT_PATH
    environ = {"TOKEN_BROKER_CONFIG": str(tmp_path / "config.toml")}
    write(APP)
    assert load(None, environ).path == find_path(None, environ) == tmp_path / "config.toml"
    assert load(write(APP, name="other.toml"), environ).path == tmp_path / "other.toml"


def test_the_environment_beats_the_file(read: Check) -> None:
    settings = read(
        APP + "[policy]\ntick = 5\nmin_gap = 20\n",
        TOKEN_BROKER_POLICY__TICK="2.5",
        TOKEN_BROKER_SERVER__LISTEN="[::1]:80, unix:/run/b.sock",
        TOKEN_BROKER_SERVER__ALLOWED_HOSTS='["a.example"]',
        TOKEN_BROKER_APPS__MAIN__DAILY_QUOTA="100",
    )
    assert (settings.policy.tick, settings.policy.min_gap) == (2.5, 20)
    assert [str(address) for address in settings.server.listen] == ["[::1]:80", "unix:/run/b.sock"]
    assert settings.server.allowed_hosts == ("a.example",)
    assert settings.apps["main"].daily_quota == 100


def test_the_environment_names_apps_in_capitals_and_can_add_one(read: Check) -> None:
    settings = read(
        APP.replace("main]", "My-Shop]"),
        TOKEN_BROKER_APPS__MY_SHOP__DAILY_QUOTA="100",
        TOKEN_BROKER_APPS__NEW__APPID="wx2",
        TOKEN_BROKER_SECRET_NEW="99",
    )
    assert settings.apps["My-Shop"].daily_quota == 100
    assert settings.apps["new"].secret == Secret("99")
    assert type(settings.apps["new"].appid) is str


def test_variables_of_others_that_share_the_prefix_are_left_alone(read: Check) -> None:
    # Kubernetes sets these for a service that is called token-broker.
    assert read(
        APP,
        TOKEN_BROKER_SERVICE_HOST="10.0.0.1",
        TOKEN_BROKER_PORT="tcp://10.0.0.1:8765",
        TOKEN_BROKER_SECRET_X__Y="1",
    )


@pytest.mark.parametrize(
    ("variable", "error"),
    [
        ("TOKEN_BROKER_POLICY__TOCK", 'policy.tock: unknown key; did you mean "tick"?'),
        ("TOKEN_BROKER_POLITY__TICK", 'polity: unknown key; did you mean "policy"?'),
        ("TOKEN_BROKER_POLICY__TICK", "policy.tick: must be a number"),
        ("TOKEN_BROKER_APPS__MAIN", "apps.main: must be a table"),
        ("TOKEN_BROKER_APPS__MAIN__DAILY_QUOTA", "apps.main.daily_quota: must be a whole number"),
        ("TOKEN_BROKER_WECHAT__API_BASE", "wechat.api_base: must be a URL"),
        ("TOKEN_BROKER_SERVER__LISTEN", "server.listen[0]: an address is"),
    ],
)
def test_a_wrong_variable_is_refused_by_name(wrong: Wrong, variable: str, error: str) -> None:
    (found,) = wrong(APP, **{variable: "true"})
    assert found.startswith(error)
    assert found.endswith(f"(set by ${variable})")


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///var/lib/token-broker/broker.db", "/var/lib/token-broker/broker.db"),
        ("sqlite:////var/lib/token-broker/broker.db", "/var/lib/token-broker/broker.db"),
        ("sqlite:///b", "/b"),
    ],
)
def test_a_store_url_means_an_absolute_path_with_three_slashes_or_four(
    read: Check, url: str, path: str
) -> None:
    store = read(f'{APP}[store]\nurl = "{url}"\n').store
    assert (store.path, store.url) == (Path(path), f"sqlite://{path}")


def test_without_a_url_the_store_is_in_the_state_directory_or_else_here(
    read: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read(APP, STATE_DIRECTORY="/var/lib/a:/var/lib/b").store.path == Path(
        "/var/lib/a/broker.db"
    )
    monkeypatch.chdir(tmp_path)
    assert read(APP).store.path == tmp_path / "broker.db"


# --- what is refused, key by key ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("toml", "error"),
    [
        ("[polcy]", 'polcy: unknown key; did you mean "policy"?; there are apps, avatars'),
        (
            "[policy]\nticks = 1",
            'policy.ticks: unknown key; did you mean "tick"?; there are max_backoff',
        ),
        ('[apps.b]\nappid = "wx2"\nsecret = "x"\ndaily = 1', "apps.b.daily: unknown key"),
        ('[store]\nencryption_key_file = "/k"', "store.encryption_key_file: /k does not exist"),
        ('"" = 1', '"": unknown key'),
        ("policy = 1", "policy: must be a table"),
        ("[policy]\ntick = 0", "policy.tick: must be greater than 0, it is 0"),
        ("[policy]\ntick = -1", "policy.tick: must be greater than 0, it is -1"),
        ("[policy]\ntick = nan", "policy.tick: must be a finite number"),
        ("[policy]\noverlap = inf", "policy.overlap: must be a finite number"),
        ("[policy]\ntick = true", "policy.tick: must be a number"),
        ('[policy]\ntick = "5"', "policy.tick: must be a number"),
        (
            "[policy]\nrefresh_fraction = 0",
            "policy.refresh_fraction: must be greater than or equal to 0.01, it is 0",
        ),
        ("[policy]\nrefresh_fraction = 1", "policy.refresh_fraction: must be less than 1, it is 1"),
        ("[policy]\nrefresh_fraction = 0.95", "policy.refresh_fraction: must be less than 0.907"),
        (
            "[policy]\noverlap = -0.5",
            "policy.overlap: must be greater than or equal to 0, it is -0.5",
        ),
        (
            "[policy]\nmin_gap = 0",
            "policy.min_gap: must be greater than 0, it is 0; two calls at once would kill",
        ),
        ("[policy]\nmax_backoff = 29", "policy.max_backoff: must be at least policy.min_gap (30)"),
        (
            "[policy]\nmin_serve = 241",
            "policy.min_serve: must be less than or equal to 240, it is 241; a token of",
        ),
        ("[policy]\nreport_quota = 1.5", "policy.report_quota: must be a whole number"),
        ("[wechat]\ntimeout = 0", "wechat.timeout: must be greater than 0"),
        ('[wechat]\napi_base = "http://api.weixin.qq.com"', "wechat.api_base: must be https"),
        (
            '[wechat]\napi_base = "https://u:p@api.weixin.qq.com"',
            "wechat.api_base: must not hold a user name",
        ),
        (
            '[wechat]\napi_base = "https://relay.example/a/../b"',
            "wechat.api_base: has a path that is not made of plain names",
        ),
        (
            '[wechat]\napi_base = "https://relay.example//a"',
            "wechat.api_base: has a path that is not made of plain names",
        ),
        (
            '[wechat]\napi_base = "https://api.weixin.qq.com?"',
            "wechat.api_base: must not hold a query",
        ),
        ('[wecom]\napi_base = "http://relay.example"', "wecom.api_base: must be https"),
        ('[wechat]\nproxy = "proxy.example"', "wechat.proxy: must be the URL of an HTTP proxy"),
        ('[wechat]\nproxy = "https://p:1"', "wechat.proxy: must be the URL of an HTTP proxy"),
        ('[wechat]\nproxy = "http://p:1/x"', "wechat.proxy: must be the URL of an HTTP proxy"),
        (
            '[wechat]\nproxy = "http://me:pw@p:1"',
            "wechat.proxy: must not hold a user name or password: put the whole URL into a file",
        ),
        ('[wechat]\nca_file = "/none"', "wechat.ca_file: /none does not exist"),
        (
            '[wechat]\nca_file = "./main.secret"',
            "wechat.ca_file: ",
        ),
        ('[server]\ntrusted_proxies = ["10.0.0.1/8"]', "server.trusted_proxies[0]: must be a net"),
        ('[server]\ntrusted_proxies = ["mesh"]', "server.trusted_proxies[0]: must be a network"),
        ("[server]\ntrusted_proxies = [10]", "server.trusted_proxies[0]: must be a string"),
        (f'[store]\nurl = "sqlite:///{"d" * 300}/b.db"', "store.url: is too long"),
        (f'[store]\nurl = "sqlite:///{"d/" * 2100}b.db"', "store.url: is too long"),
        ('[wechat]\napi_base = "https://[x"', "wechat.api_base: is no URL"),
        ('[wechat]\napi_base = "ftp://x"', "wechat.api_base: must be a URL"),
        ('[store]\nurl = "redis://localhost"', 'store.url: must be "sqlite:///"'),
        ('[store]\nurl = "sqlite:///:memory:"', 'store.url: must be "sqlite:///"'),
        ('[store]\nurl = "sqlite:///var/lib/"', 'store.url: must be "sqlite:///"'),
        ('[store]\nurl = "sqlite:./broker.db"', 'store.url: must be "sqlite:///"'),
        ('[server]\nlisten = "127.0.0.1:1"', "server.listen: must be an array"),
        ("[server]\nlisten = []", "server.listen: needs at least one address"),
        (
            '[server]\nlisten = ["127.0.0.1:1", "127.0.0.1:1"]',
            "server.listen: 127.0.0.1:1 is listed twice",
        ),
        (
            '[server]\nlisten = ["0.0.0.0:1"]',
            "server.listen: an address beyond loopback needs [clients]",
        ),
        ('[server]\nallowed_hosts = ["a.example:80"]', "server.allowed_hosts[0]: is no host name"),
        (
            '[apps.b]\nappid = "wx2"\nsecret = "x"\nendpoint = "classic"',
            "apps.b.endpoint: must be 'token', 'stable_token', 'wecom' or 'none'",
        ),
        (
            '[proxy]\nprefixes = ["/a/", "/sns/"]',
            "proxy.prefixes[1]: must not be a path of the broker's own, nor /sns/",
        ),
        (
            '[proxy]\nprefixes = ["/a/", "/v1/"]',
            "proxy.prefixes[1]: must not be a path of the broker's own",
        ),
        ('[proxy]\nprefixes = ["/a/", "/"]', "proxy.prefixes[1]: must look like /cgi-bin/"),
        (
            '[proxy]\nprefixes = ["/a/", "/cgi-bin/../"]',
            "proxy.prefixes[1]: must look like /cgi-bin/",
        ),
        ("[proxy]\nprefixes = []", "proxy.prefixes: "),
        (
            '[proxy]\nallow = ["/cgi-bin/token"]',
            "proxy.allow[0]: must be one of those refused by default: /cgi-bin/openapi/rid/get, ",
        ),
        ("[proxy]\nrate = 0", "proxy.rate: must be greater than 0"),
        (
            "[proxy]\nmax_concurrency = 0",
            "proxy.max_concurrency: must be greater than or equal to 1",
        ),
        (
            '[apps.b]\nappid = "wx2"\nsecret = "x"\ndaily_quota = 0',
            "apps.b.daily_quota: must be greater than or equal to 1",
        ),
        (
            '[apps.b]\nappid = "wx2"\nsecret = "x"\ndaily_quota = 26',
            "apps.b.daily_quota: a day needs up to 27 calls, it is 26",
        ),
        (
            '[apps.b]\nappid = "w x2"\nsecret = "x"',
            "apps.b.appid: an AppID looks like wx0123456789abcdef",
        ),
        ('[apps.b]\nsecret = "x"', "apps.b.appid: is needed"),
        (
            '[apps.b]\nappid = "wx0123456789abcdef"\nsecret = "x"',
            "apps.main.appid: is the AppID of apps.b too",
        ),
        (
            '[apps.wx0123456789abcdef]\nappid = "wx2"\nsecret = "x"',
            "apps.wx0123456789abcdef: is named like the AppID of",
        ),
        ('[apps."-b"]\nappid = "wx2"\nsecret = "x"', "apps.-b: a name is 1 to 64 letters"),
        (
            '[apps."a\\u001b"]\nappid = "wx2"\nsecret = "x"',
            'apps."a\\x1b": a name is 1 to 64 letters',
        ),
        ("[clients.b]", "clients.b.key_sha256: exactly one of"),
        ('[clients.b]\nkey_sha256 = "abc"', "clients.b.key_sha256: must be 64 hex digits"),
        ("[avatars]\nproxy_images = 1", "avatars.proxy_images: must be true or false"),
        ("[avatars]\ncache_ttl = -1", "avatars.cache_ttl: must be greater than or equal to 0"),
        ('[avatars]\nbroker = "127.0.0.1:8765"', "avatars.broker: must be a URL"),
        (
            '[avatars]\napp = "mian"',
            'avatars.app: names no app; did you mean "main"?; there is main',
        ),
    ],
)
def test_a_wrong_value_is_refused_with_its_key_and_the_cure(
    wrong: Wrong, toml: str, error: str
) -> None:
    (found,) = wrong(f"{toml}\n{APP}")
    assert found.startswith(error)


def test_a_configuration_needs_an_app(wrong: Wrong) -> None:
    assert wrong("")[0].startswith("apps: at least one app is needed")


def test_a_quota_that_the_schedule_would_exhaust_is_refused_by_the_configured_policy(
    read: Check, wrong: Wrong
) -> None:
    quota = APP + "daily_quota = 27\n"
    assert read(quota).apps["main"].daily_quota == 27
    assert wrong(quota + "[policy]\nrefresh_fraction = 0.4\n")[0].startswith(
        "apps.main.daily_quota: a day needs up to 34 calls"
    )
    assert (
        read(APP + 'daily_quota = 13\nendpoint = "stable_token"\n').apps["main"].endpoint
        == "stable_token"
    )


EVERYTHING_WRONG = """
[server]
listen = ["nonsense", "0.0.0.0:80"]
[sever]
[store]
url = "redis://"
[wechat]
api_base = "http://example.com"
timeout = "10"
[policy]
tick = -1
min_gap = 60
max_backoff = 50
refresh_fraction = true
tock = 1
[apps.main]
appid = "main"
secret = 123
[apps.two]
appid = "wx2"
daily_quota = 3
[apps.three]
appid = "wx2"
secret = "x"
[avatars]
app = "tow"
cache_ttl = nan
"""


def test_everything_that_is_wrong_is_said_at_once(wrong: Wrong) -> None:
    keys = [
        error.partition(": ")[0]
        for error in wrong(EVERYTHING_WRONG, TOKEN_BROKER_POLICY__OVERLAP="long")
    ]
    assert sorted(keys) == sorted(
        [
            "server.listen[0]",
            "server.listen",
            "sever",
            "store.url",
            "wechat.api_base",
            "wechat.timeout",
            "policy.tick",
            "policy.max_backoff",
            "policy.refresh_fraction",
            "policy.tock",
            "policy.overlap",
            "apps.main.appid",
            "apps.main.secret",
            "apps.two.daily_quota",
            "apps.two.secret_file",
            "apps.three.appid",
            "avatars.app",
            "avatars.cache_ttl",
        ]
    )


def test_a_wrong_table_leads_to_one_complaint_not_to_those_that_follow_from_it(
    wrong: Wrong,
) -> None:
    assert wrong("apps = 3\nclients = 3\npolicy = 3\nserver = 3") == tuple(
        f"{key}: must be a table" for key in ("server", "policy", "apps", "clients")
    )
    assert (
        wrong('apps.main = 3\n[clients."a b"]\nscopes = [1]\napps = [3]')[0]
        == "apps.main: must be a table"
    )


# --- listeners and origins ------------------------------------------------------------------------


def test_a_listener_beyond_loopback_is_fine_once_there_are_clients(read: Check) -> None:
    client = f'[clients.orders]\nkey_sha256 = "{"a" * 64}"\n'
    assert (
        read(f'[server]\nlisten = ["0.0.0.0:1"]\n{APP}{client}').server.listen[0].host == "0.0.0.0"  # noqa: S104
    )


def test_plain_http_to_elsewhere_needs_a_word(read: Check) -> None:
    plain = '[wechat]\napi_base = "http://sandbox:8780"\nallow_plaintext = true\n'
    assert read(f"{APP}{plain}").wechat.api_base == "http://sandbox:8780"


def test_a_base_may_have_a_path(read: Check) -> None:
    wechat = read(
        f'{APP}[wechat]\napi_base = "https://Relay.example/weixin/v1/"\n'
        '[wecom]\napi_base = "https://relay.example/wecom"\n'
    ).wechat
    assert wechat.api_base == "https://relay.example/weixin/v1"
    assert wechat.wecom_base == "https://relay.example/wecom"


def test_names_with_an_underscore_and_addresses_are_allowed_hosts(read: Check) -> None:
    hosts = '["token_broker", "10.0.0.5", "[FD00::0:5]", "Broker.svc.cluster.local"]'
    settings = read(f"[server]\nallowed_hosts = {hosts}\n{APP}")
    assert settings.server.allowed_hosts == (
        "token_broker",
        "10.0.0.5",
        "fd00::5",
        "broker.svc.cluster.local",
    )


def test_trusted_proxies_are_networks_or_addresses(read: Check) -> None:
    networks = read(f'[server]\ntrusted_proxies = ["10.0.0.0/8", "fd00::7"]\n{APP}')
    assert list(map(str, networks.server.trusted_proxies)) == ["10.0.0.0/8", "fd00::7/128"]


@pytest.mark.parametrize(
    "base",
    [
        "http://127.0.0.1:8780",
        "http://[::1]:8780",
        "http://localhost:8780",
        "https://api2.weixin.qq.com",
    ],
)
def test_plain_http_is_for_this_machine_and_a_slash_at_the_end_goes(read: Check, base: str) -> None:
    assert read(f'{APP}[wechat]\napi_base = "{base}/"\n').wechat.api_base == base


# --- secrets --------------------------------------------------------------------------------------


def test_a_secret_is_looked_for_in_the_contracts_order(
    write: Callable[..., Path], read: Check, tmp_path: Path
) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "main.secret").write_text("from-systemd")
    (credentials / "main.secret").chmod(0o440)
    bare = '[apps.main]\nappid = "wx1"\n'
    inline = bare + 'secret = "inline"\n'
    environ = {
        "TOKEN_BROKER_SECRET_MAIN": "from-variable",
        "CREDENTIALS_DIRECTORY": str(credentials),
    }
    assert read(APP, **environ).apps["main"].secret == Secret("s3cret")
    assert read(inline, **environ).apps["main"].secret == Secret("from-systemd")
    (credentials / "main.secret").unlink()
    assert read(inline, **environ).apps["main"].secret == Secret("from-variable")
    assert read(inline, TOKEN_BROKER_SECRET_MAIN="").apps["main"].secret == Secret("inline")
    write("  spaced\r\n\n", name="main.secret")
    assert read(APP).apps["main"].secret == Secret("spaced")


def test_an_app_without_a_secret_is_told_every_place_that_was_looked_at(wrong: Wrong) -> None:
    (error,) = wrong('[apps.my-shop]\nappid = "wx1"\n', CREDENTIALS_DIRECTORY="/run/nowhere")
    assert error.startswith("apps.my-shop.secret_file: no secret")
    for place in ("/run/nowhere/my-shop.secret", "$TOKEN_BROKER_SECRET_MY_SHOP", "`secret`"):
        assert place in error


def test_two_explicit_secrets_are_one_too_many(wrong: Wrong) -> None:
    assert wrong(APP + 'secret = "x"\n') == (
        "apps.main.secret_file: there is `secret` as well: keep one of them",
    )


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b" \n", "is empty"),
        (b"two words", "one word of visible ASCII"),
        (b"a\nb", "one word of visible ASCII"),
        (b"a\x00b", "one word of visible ASCII"),
        ("密".encode(), "one word of visible ASCII"),
        (b"a" * 4097, "longer than 4096"),
        (b"\xef\xbb\xbfs3cret", "begins with a byte order mark (BOM)"),
        ("s3cret".encode("utf-16"), "begins with a byte order mark (BOM)"),
        (b'"s3cret"\n', "the secret is in quotes"),
        (b"'s3cret'", "the secret is in quotes"),
        ("“s3cret”".encode(), "the secret is in quotes"),
    ],
)
def test_a_secret_file_that_holds_no_secret_is_refused(
    wrong: Wrong, tmp_path: Path, content: bytes, error: str
) -> None:
    (tmp_path / "main.secret").write_bytes(content)
    (found,) = wrong(APP)
    assert found.startswith(f"apps.main.secret_file: {tmp_path}/main.secret")
    assert error in found


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o664, 0o602, 0o601])
def test_a_secret_file_that_others_may_open_is_refused_with_the_cure(
    read: Check, wrong: Wrong, tmp_path: Path, mode: int
) -> None:
    (tmp_path / "main.secret").chmod(mode)
    (error,) = wrong(APP)
    assert f"mode {mode:04o}" in error
    command = f"chmod 600 {tmp_path}/main.secret"
    assert error.endswith(command)
    subprocess.run(command.split(), check=True)
    assert read(APP).apps["main"].secret == Secret("s3cret")


def test_a_configuration_with_a_secret_in_it_is_a_secret_file(write: Callable[..., Path]) -> None:
    inline = '[apps.main]\nappid = "wx1"\nsecret = "x"\n'
    assert load(write(APP, mode=0o644), {})
    with pytest.raises(ConfigError, match="holds a secret"):
        load(write(inline, mode=0o644), {})
    with pytest.raises(ConfigError, match="may be written by everybody"):
        load(write(APP, mode=0o666), {})


@only_root
def test_a_secret_file_of_another_user_is_refused(wrong: Wrong, tmp_path: Path) -> None:
    os.chown(tmp_path / "main.secret", NOBODY, NOBODY)
    assert f"belongs to uid {NOBODY}" in wrong(APP)[0]


def test_a_missing_directory_fifo_or_device_is_not_a_secret(wrong: Wrong, tmp_path: Path) -> None:
    (tmp_path / "main.secret").unlink()
    assert "does not exist" in wrong(APP)[0]
    os.mkfifo(tmp_path / "main.secret", 0o600)
    assert "is not a regular file" in wrong(APP)[0]
    (tmp_path / "main.secret").unlink()
    (tmp_path / "main.secret").mkdir()
    assert "is a directory" in wrong(APP)[0]


def test_links_are_followed_as_kubernetes_makes_them(read: Check, tmp_path: Path) -> None:
    (tmp_path / "..2026").mkdir(0o755)
    (tmp_path / "main.secret").rename(tmp_path / "..2026" / "main.secret")
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "main.secret").symlink_to("..data/main.secret")
    assert read(APP).apps["main"].secret == Secret("s3cret")


def test_a_link_into_a_directory_where_everybody_may_write_is_refused(
    wrong: Wrong, tmp_path: Path
) -> None:
    everybodys = tmp_path / "everybodys"
    everybodys.mkdir()
    everybodys.chmod(0o1777)
    (tmp_path / "main.secret").rename(everybodys / "main.secret")
    (tmp_path / "main.secret").symlink_to(everybodys / "main.secret")
    assert "where everybody may write" in wrong(APP)[0]


@only_root
def test_a_link_that_another_user_made_is_refused(wrong: Wrong, tmp_path: Path) -> None:
    (tmp_path / "main.secret").rename(tmp_path / "real.secret")
    (tmp_path / "main.secret").symlink_to("real.secret")
    os.chown(tmp_path / "main.secret", NOBODY, NOBODY, follow_symlinks=False)
    assert "somebody may have planted it" in wrong(APP)[0]


def test_a_link_that_leads_to_itself_ends(wrong: Wrong, tmp_path: Path) -> None:
    (tmp_path / "main.secret").unlink()
    (tmp_path / "main.secret").symlink_to("main.secret")
    assert "cannot be read" in wrong(APP)[0]


# --- clients --------------------------------------------------------------------------------------


def test_a_client_has_a_key_apps_and_scopes(write: Callable[..., Path], read: Check) -> None:
    write("bearer\n", name="orders.key")
    digest = hashlib.sha256(b"bearer").hexdigest()
    settings = read(
        APP + '[clients.orders]\nkey_file = "./orders.key"\n'
        f'[clients.ops]\nkey_sha256 = "{"AB" * 32}"\napps = ["main"]\nscopes = ["admin"]\n'
    )
    orders, ops = settings.clients["orders"], settings.clients["ops"]
    assert (orders.name, orders.key_sha256, *orders.apps, *sorted(orders.scopes)) == (
        "orders",
        digest,
        "main",
        "read",
        "report",
    )
    assert (ops.key_sha256, *ops.apps, *ops.scopes) == ("ab" * 32, "main", "admin")


def test_clients_are_refused_together_with_the_apps_and_scopes_they_may_have_meant(
    write: Callable[..., Path], wrong: Wrong
) -> None:
    write("bearer", name="orders.key")
    digest = hashlib.sha256(b"bearer").hexdigest()
    errors = wrong(f"""{APP}
[clients.a]
key_file = "./orders.key"
apps = ["mian", "main"]
scopes = ["write"]
[clients.b]
key_sha256 = "{digest}"
[clients.c]
key_sha256 = "{"c" * 64}"
key_file = "./orders.key"
""")
    assert errors == (
        "clients.a.scopes[0]: must be 'read', 'report', 'login', 'proxy' or 'admin'",
        'clients.a.apps[0]: names no app; did you mean "main"?; there is main',
        "clients.b: has the same key as clients.a: give each its own",
        "clients.c.key_sha256: exactly one of this and key_file is needed",
        "clients.c: has the same key as clients.a: give each its own",
    )


# --- the companion --------------------------------------------------------------------------------


def test_the_companion_reads_its_key_and_no_app_secret(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    write("bearer\n", name="avatars.key")
    (tmp_path / "main.secret").unlink()
    path = write(
        f'[policy]\ntick = -1\n{APP}[avatars]\nlisten = "127.0.0.1:1"\nkey_file = "./avatars.key"\n'
    )
    settings = load_avatars(path, {})
    assert (str(settings.listen), settings.broker, settings.app) == (
        "127.0.0.1:1",
        "http://127.0.0.1:8765",
        "main",
    )
    assert settings.key == Secret("bearer")
    assert load_avatars(write(APP), {}).key is None


def test_the_companion_refuses_its_own_mistakes_and_unknown_keys_anywhere(
    write: Callable[..., Path],
) -> None:
    path = write(
        f"[policy]\ntock = 1\ntick = -1\n{APP}[avatars]\ncache_ttl = -1\nproxy_image ="
        " true\nkey_file = './none'"
    )
    with pytest.raises(ConfigError) as caught:
        load_avatars(path, {})
    keys = {error.partition(":")[0] for error in caught.value.errors}
    assert keys == {"policy.tock", "avatars.cache_ttl", "avatars.proxy_image", "avatars.key_file"}


def test_the_companion_shares_wechat_and_the_allowed_hosts_with_the_daemon(
    write: Callable[..., Path],
) -> None:
    shared = (
        '[wechat]\napi_base = "http://127.0.0.1:8780"\ntimeout = 3\n[server]\nallowed_hosts ='
        ' ["pictures.example"]\n'
    )
    settings = load_avatars(write(f"{shared}{APP}[avatars]\nproxy_images = true\n"), {})
    assert (settings.wechat.api_base, settings.wechat.timeout) == ("http://127.0.0.1:8780", 3)
    assert (settings.allowed_hosts, settings.proxy_images) == (("pictures.example",), True)
    assert not load_avatars(write(APP), {}).proxy_images
    assert not load_avatars(
        write(f"{APP}[avatars]\nproxy_images = true\n"),
        {"TOKEN_BROKER_AVATARS__PROXY_IMAGES": "false"},
    ).proxy_images
    with pytest.raises(ConfigError, match=r"wechat\.api_base: must be https"):
        load_avatars(write(f'[wechat]\napi_base = "http://pictures.example"\n{APP}'), {})


def test_the_daemon_checks_the_companions_section_but_leaves_its_key_alone(
    read: Check, tmp_path: Path
) -> None:
    avatars = read(APP + '[avatars]\nkey_file = "./not-there.key"\n').avatars
    assert avatars is not None
    assert (avatars.key_file, avatars.key) == (tmp_path / "not-there.key", None)


def test_who_only_asks_the_daemon_learns_where_it_listens_without_a_secret(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "main.secret").unlink()
    path = write(f'[policy]\ntick = -1\n{APP}[server]\nlisten = ["unix:/run/b.sock"]\n')
    assert [str(address) for address in load_server(path, {}).listen] == ["unix:/run/b.sock"]
    with pytest.raises(ConfigError, match="beyond loopback"):
        load_server(write(f'{APP}[server]\nlisten = ["0.0.0.0:1"]\n'), {})


# --- the file itself, and what errors may say -----------------------------------------------------


def test_a_file_that_cannot_be_read_is_refused_with_its_path_and_the_cure(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "none.toml", "does not exist"), (tmp_path, "is a directory")):
        with pytest.raises(ConfigError) as caught:
            load(path, {})
        assert str(caught.value).startswith(f"configuration: {path} {why}")
        assert "$TOKEN_BROKER_CONFIG" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (f'[apps.main]\nsecret = "{CANARY}\n'.encode(), "is not valid TOML at line 2, column 33"),
        (
            f"[apps.main]\nsecret = {CANARY}\n".encode(),
            "is not valid TOML at line 2, column 10: Invalid value",
        ),
        (f"{CANARY}\n".encode(), "at line 1, column 23: Expected '=' after a key"),
        (f"{CANARY} = 1\n{CANARY} = 1".encode(), "at end of document: Cannot overwrite a value"),
        (f"[{CANARY}]\n[{CANARY}]".encode(), "is not valid TOML at line 2"),
        (f"x = {{{CANARY} = 1, {CANARY} = 2}}".encode(), "is not valid TOML at line 1"),
        (f'x = "{CANARY}'.encode(), "is not valid TOML at end of document: Unterminated string"),
        (f'secret = "{CANARY}\xff"'.encode("latin-1"), "is not UTF-8 from byte 32 on"),
        (b"x = " + b"[" * 100_000, "is not valid TOML"),
    ],
)
def test_a_syntax_error_has_its_place_and_quotes_nothing(
    tmp_path: Path, content: bytes, error: str
) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    assert error in str(caught.value)
    assert CANARY not in str(caught.value)


def test_a_byte_order_mark_is_no_error(tmp_path: Path, read: Check) -> None:
    read(APP)
    (tmp_path / "config.toml").write_bytes(b"\xef\xbb\xbf" + APP.encode())
    assert load(tmp_path / "config.toml", {}).apps


TEXT_KEYS = [
    "server.listen",
    "server.allowed_hosts",
    "store.url",
    "store.node",
    "wechat.api_base",
    "wechat.timeout",
    "policy.tick",
    "policy.report_quota",
    "apps.main.appid",
    "apps.main.secret_file",
    "apps.main.secret",
    "apps.main.endpoint",
    "apps.main.daily_quota",
    "apps.main.unknown",
    "clients.a.key_sha256",
    "clients.a.key_file",
    "clients.a.apps",
    "clients.a.scopes",
    "avatars.listen",
    "avatars.broker",
    "avatars.app",
    "avatars.key_file",
    "avatars.proxy_images",
    "unknown",
    "apps",
    "apps.main",
]


@pytest.mark.parametrize("key", TEXT_KEYS)
@pytest.mark.parametrize(
    "value",
    [
        f'"{CANARY}"',
        f'["{CANARY}"]',
        f'"{CANARY} {CANARY}"',
        f'"https://{CANARY}@x"',
        f'{{ x = "{CANARY}" }}',
    ],
)
def test_no_error_shows_what_was_written_to_the_wrong_place(
    wrong: Wrong, key: str, value: str
) -> None:
    errors = wrong(f"{key} = {value}\npolicy.tock = 1")
    assert CANARY.lower() not in "\n".join(errors).lower()


@pytest.mark.parametrize(
    "value", [CANARY + " x", CANARY + "\x00", CANARY * 400, f'["{CANARY}"', f'{{"x": "{CANARY}"}}']
)
def test_no_error_shows_a_variable(wrong: Wrong, value: str) -> None:
    variables: Mapping[str, Any] = {
        f"TOKEN_BROKER_{key.upper().replace('.', '__')}": value for key in TEXT_KEYS
    }
    errors = wrong("policy.tock = 1", TOKEN_BROKER_SECRET_MAIN=value, **variables)
    assert CANARY.lower() not in "\n".join(errors).lower()


def test_no_error_shows_a_secret_written_as_a_number_or_its_file(
    wrong: Wrong, tmp_path: Path
) -> None:
    (tmp_path / "main.secret").write_text(f"{CANARY} {CANARY}")
    assert CANARY not in wrong(APP)[0]
    assert wrong('[apps.main]\nappid = "wx1"\nsecret = 8765309\n') == (
        "apps.main.secret: must be a string",
    )
    assert (
        CANARY
        not in wrong('[apps.main]\nappid = "wx1"\n', TOKEN_BROKER_SECRET_MAIN=f"{CANARY} x")[0]
    )


def test_an_error_has_no_history_that_a_traceback_could_print(write: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(f'[apps.main]\nsecret = "{CANARY}'), {})
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_tokens_can_be_sealed_with_a_key_from_a_closed_file(tmp_path: Path) -> None:
    key = tmp_path / "store.key"
    for name, content in (("store.key", "k" * 32), ("main.secret", "secret")):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o600)
    config = tmp_path / "config.toml"
    config.write_text(
        '[store]\nencryption_key_file = "./store.key"\n[apps.main]\nappid = "wx1"\nsecret_file ='
        ' "./main.secret"\n'
    )
    store = load(config, {}).store
    assert store.encryption_key is not None
    assert store.encryption_key.reveal() == "k" * 32
    assert store.previous_encryption_key is None
    key.write_text("short")
    with pytest.raises(ConfigError, match=r"store\.encryption_key_file: a key has at least 16"):
        load(config, {})
    key.chmod(0o644)
    with pytest.raises(ConfigError, match=r"store\.encryption_key_file: .*chmod 600"):
        load(config, {})


def test_while_a_key_is_rotated_the_previous_one_is_named_beside_it(tmp_path: Path) -> None:
    for name, content in (("new.key", "n" * 32), ("old.key", "o" * 32), ("main.secret", "secret")):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o600)
    config = tmp_path / "config.toml"
    app = '[apps.main]\nappid = "wx1"\nsecret_file = "./main.secret"\n'
    previous = 'previous_encryption_key_file = "./old.key"\n'
    config.write_text(f'[store]\nencryption_key_file = "./new.key"\n{previous}{app}')
    store = load(config, {}).store
    keys = store.encryption_key, store.previous_encryption_key
    assert [key and key.reveal() for key in keys] == ["n" * 32, "o" * 32]
    (tmp_path / "old.key").write_text("short")
    with pytest.raises(ConfigError, match=r"previous_encryption_key_file: a key has at least 16"):
        load(config, {})
    (tmp_path / "old.key").write_text("o" * 32)
    config.write_text(f"[store]\n{previous}{app}")
    with pytest.raises(ConfigError, match="previous_encryption_key_file: needs encryption_key_fil"):
        load(config, {})
