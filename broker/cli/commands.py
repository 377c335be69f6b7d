"""The commands.

Each imports what it needs when it runs, so that `get` in a script does not load the server.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from broker import __version__

FAILED: Final = 1
BUSY: Final = 75  # EX_TEMPFAIL: another daemon owns the store
MISCONFIGURED: Final = 78  # EX_CONFIG

CONFIG: Final = click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="The configuration; default: $TOKEN_BROKER_CONFIG, then /etc/token-broker/config.toml.",
)
JSON: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
KEY_FILE: Final = click.option(
    "--key-file",
    type=click.Path(path_type=Path),
    envvar="TOKEN_BROKER_KEY_FILE",
    help="A file with this client's key, where the daemon has [clients] and no Unix socket.",
)


def stop(code: int, *lines: str) -> NoReturn:
    """End with this exit code, after writing sentences to stderr."""
    for line in lines:
        click.echo(f"token-broker: {line}", err=True)
    sys.exit(code)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="token-broker")
def main() -> None:
    """The one process that fetches WeChat access tokens, so that services never fight over them."""


@main.command()
@CONFIG
def serve(config: Path | None) -> None:
    """Run the daemon."""
    if not hasattr(os, "geteuid"):
        stop(FAILED, "the daemon runs on Linux and macOS; on Windows use it in WSL or a container")
    import resource

    from broker.app import serve as run
    from broker.config.load import ConfigError
    from broker.config.notices import notices
    from broker.core.ports import StoreBusy, StoreError, StoreRefused
    from broker.system import log
    from broker.system.sockets import AddressTaken

    settings = _configured(config)
    log.configure(os.environ.get("TOKEN_BROKER_LOG_LEVEL", ""))
    for notice in notices(settings):
        log.tell("dangerous-configuration", code=notice.code, text=notice.text)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold tokens and secrets
    # A connection takes a file, and so does each request that waits.
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    try:
        _run(run(settings))
    except StoreBusy as busy:
        stop(BUSY, str(busy))
    except StoreRefused as refused:
        stop(MISCONFIGURED, str(refused))
    except ConfigError as error:
        stop(MISCONFIGURED, *error.errors)
    except (StoreError, AddressTaken, OSError) as failure:
        stop(FAILED, str(failure))


@main.command()
@CONFIG
def check(config: Path | None) -> None:
    """Read configuration, secrets, permissions and store; call nobody; say all that is wrong."""
    _check(config)


def _check(config: Path | None) -> None:
    from broker.config.load import ConfigError, load
    from broker.config.notices import advice, notices
    from broker.notify.receivers import receivers
    from broker.store.open import inspect, warnings

    try:
        settings = load(config)
        receivers(settings.notify)
        found = asyncio.run(inspect(settings.store))
    except ConfigError as error:
        stop(MISCONFIGURED, *error.errors)
    except OSError as error:
        stop(MISCONFIGURED, f"store.url: {error.strerror}")
    if found:
        stop(MISCONFIGURED, *(f"store.url: {complaint}" for complaint in found))
    for warning in warnings(settings.store):
        click.echo(f"token-broker: store.url: warning: {warning}", err=True)
    click.echo(
        f"{settings.path or 'the environment'}: good. Apps: {', '.join(settings.apps)}. Store:"
        f" {settings.store.path or 'PostgreSQL'}."
    )
    for notice in notices(settings):
        click.echo(f"Beware: {notice.text}.")
    for better in advice(settings):
        click.echo(f"Advice: {better}.")


@main.command()
@CONFIG
@click.option("--name", help="What services call the app; default: main.")
@click.option("--appid", help="The AppID; for WeCom the corpid.")
@click.option(
    "--secret-from",
    metavar="FILE",
    help="The file with the AppSecret, or - for standard input. It is never an argument.",
)
@click.option("--endpoint", type=click.Choice(["token", "stable_token", "wecom"]))
@click.option("--services", type=click.Choice(["here", "elsewhere"]), help="Where they are.")
def init(config: Path | None, secret_from: str | None, **options: str | None) -> None:
    """Write a first configuration: ask for what `serve` needs, and check it."""
    from broker.cli import init as first
    from broker.config.sources import DEFAULT_PATH

    path = config or Path(os.environ.get("TOKEN_BROKER_CONFIG") or DEFAULT_PATH)
    given = {key: value for key, value in options.items() if value is not None}
    try:
        for key, valid in (("name", first.valid_name), ("appid", first.valid_appid)):
            if key in given:
                valid(given[key])
        secret = first.read_secret_from(secret_from) if secret_from else None
        at_terminal = sys.stdin.isatty()
        answers = (first.ask if at_terminal else first.without_terminal)(given, secret)
        written = first.write(path, answers)
    except first.InitRefused as why:
        stop(FAILED, str(why))
    except OSError as error:
        stop(FAILED, f"{error.filename or path}: {error.strerror}; choose a place with --config")
    for file in written:
        click.echo(f"wrote {file}")
    if first.service_group() is not None:  # as the unit will hand the secret over
        os.environ["CREDENTIALS_DIRECTORY"] = str(path.absolute().parent)
    _check(path)
    click.echo("\n".join(["Go on with:", *(f"  {it}" for it in first.next_steps(path, answers))]))


@main.command()
@click.option(
    "--from",
    "source",
    required=True,
    metavar="URL",
    help="The store to leave: sqlite:///… or postgresql://…",
)
@click.option(
    "--to", "target", required=True, metavar="URL", help="The store to move into; it must be empty."
)
@CONFIG
def migrate(source: str, target: str, config: Path | None) -> None:
    """Move tokens and ledger to another store, while no broker runs on either.

    Done again, it does nothing.
    """
    from broker.config.load import ConfigError, load_stores
    from broker.core.ports import StoreBusy, StoreError, StoreRefused
    from broker.store.open import move
    from broker.system.clock import SystemClock

    try:
        leaving, moving_in = load_stores(config, (source, target))
        accounts, calls = asyncio.run(move(leaving, moving_in, SystemClock()))
    except StoreBusy as busy:
        stop(BUSY, f"{busy}. Stop the brokers that use it first.")
    except StoreRefused as refused:
        stop(MISCONFIGURED, str(refused))
    except ConfigError as error:
        stop(MISCONFIGURED, *error.errors)
    except (StoreError, OSError) as failure:
        stop(FAILED, str(failure))
    click.echo(
        f"moved: {accounts} account(s), {calls} call(s). Put the new store.url into the"
        " configuration; the old store is history."
    )


@main.command()
@CONFIG
@JSON
def status(config: Path | None, as_json: bool) -> None:  # noqa: FBT001 -- click's way
    """Ask the running daemon how it is."""
    import json

    from broker.cli import query

    answer = _asked(config, "/v1/status", None)
    click.echo(json.dumps(answer, indent=2) if as_json else query.table(answer))


@main.command()
@CONFIG
@click.option("--test", is_flag=True, required=True, help="Send one notification that says so.")
def notify(config: Path | None, test: bool) -> None:  # noqa: ARG001, FBT001 -- click's way
    """Send a test message to everyone whom [notify] names, and print what came back."""
    from broker.cli import notify as trying
    from broker.config.load import ConfigError
    from broker.system import log

    settings = _configured(config).notify
    log.configure(os.environ.get("TOKEN_BROKER_LOG_LEVEL", ""))
    try:
        lines, is_good = asyncio.run(trying.told(settings))
    except ConfigError as error:
        stop(MISCONFIGURED, *error.errors)
    for line in lines:
        click.echo(line)
    sys.exit(0 if is_good else FAILED)


@main.command()
@click.argument("app")
@CONFIG
@KEY_FILE
@JSON
def get(  # click passes every option by its name
    app: str, config: Path | None, key_file: Path | None, *, as_json: bool
) -> None:
    """Print the token of APP and nothing else, for scripts."""
    import json
    from urllib.parse import quote

    # As bytes, since an argument need not be UTF-8.
    answer = _asked(config, f"/v1/tokens/{quote(os.fsencode(app), safe='')}", key_file)
    click.echo(json.dumps(answer) if as_json else answer["access_token"])


@main.command()
@click.option("--port", default=8780, show_default=True, help="Where to listen.")
@click.option("--host", default="127.0.0.1", show_default=True, help="At which address.")
@click.option("--expires-in", default=7200, show_default=True, help="Seconds a token lives.")
@click.option(
    "--overlap", default=300, show_default=True, help="Seconds the previous token lives on."
)
@click.option("--daily-quota", default=2000, show_default=True, help="Token calls a day.")
@click.option("--followers", default=24, show_default=True, help="Followers of each account.")
@click.option(
    "--withhold-avatars",
    is_flag=True,
    help="Withhold nicknames and avatars, as WeChat does since 2021-12-27.",
)
def sandbox(port: int, host: str, **options: Any) -> None:
    """Stand in for WeChat, for development without an account."""
    from broker.sandbox import SandboxOptions
    from broker.sandbox import serve as run

    # In a container this is process 1, which no signal ends by itself.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(run(SandboxOptions(**options), port, host))
    except OSError as error:
        stop(FAILED, f"cannot listen on {host}:{port}: {error.strerror}")


@main.group(invoke_without_command=True)
@CONFIG
@click.pass_context
def avatars(context: click.Context, config: Path | None) -> None:
    """Run the companion, which shows the followers' avatars. It is a client of the daemon."""
    context.obj = config
    if context.invoked_subcommand is not None:
        return
    from broker.avatars.consent.consents import ConsentStoreRefused
    from broker.config.load import ConfigError, load_avatars
    from broker.system import log
    from broker.system.sockets import AddressTaken

    try:
        settings = load_avatars(config)
        log.configure()
        asyncio.run(_show_avatars(settings))
    except ConfigError as error:
        stop(MISCONFIGURED, *error.errors)
    except ConsentStoreRefused as refused:
        stop(MISCONFIGURED, str(refused))
    except AddressTaken as taken:
        stop(FAILED, str(taken))
    except OSError as failure:
        stop(FAILED, str(failure))


@avatars.command()
@click.argument("openids", nargs=-1, metavar="[OPENID]...")
@click.option(
    "--from-csv",
    "csv_file",
    metavar="FILE",
    help="A file with openids, such as WeChat's daily mail of those who withdrew; - for stdin.",
)
@click.option("--all", "everybody", is_flag=True, help="Delete what is kept of everybody.")
@CONFIG
@click.pass_context
def forget(
    context: click.Context,
    openids: tuple[str, ...],
    csv_file: str | None,
    everybody: bool,  # noqa: FBT001 -- click's way
    config: Path | None,
) -> None:
    """Delete what is kept of people who agreed to show their avatar."""
    from broker.cli import consents

    if [bool(openids), csv_file is not None, everybody].count(True) != 1:
        raise click.UsageError("Give openids, or --from-csv FILE, or --all.")
    with _consents_file(config or context.obj) as file:
        try:
            if everybody:
                click.echo(consents.forgotten(file.forget_all(time.time())))
                return
            named = list(openids) if csv_file is None else consents.openids_in(csv_file)
            click.echo(consents.forgotten(file.forget(named, "forgotten", time.time()), len(named)))
        except consents.CsvRefused as refused:
            stop(FAILED, f"--from-csv: {refused}")


@avatars.command()
@click.argument("openid", required=False)
@CONFIG
@click.pass_context
def show(context: click.Context, openid: str | None, config: Path | None) -> None:
    """Print all that is kept of one person, who has a right to look at it, as JSON.

    Without OPENID: how many agreed and took it back on which day, and the texts agreed to.
    """
    import json

    from broker.avatars.consent.store import as_export
    from broker.cli import consents

    with _consents_file(config or context.obj) as file:
        if openid is None:
            click.echo(json.dumps(consents.proof(file), indent=2, ensure_ascii=False))
            return
        found = file.find([openid], time.time()).get(openid)
    if found is None:
        stop(FAILED, "nothing is kept of this openid")
    click.echo(json.dumps(as_export(found), indent=2, ensure_ascii=False))


@contextlib.contextmanager
def _consents_file(config: Path | None) -> Iterator[Any]:
    """Yield the file with the consents; ends with a sentence where there is none to be used."""
    from broker.avatars.consent.store import ConsentStoreError, ConsentStoreRefused
    from broker.cli import consents
    from broker.config.load import ConfigError, load_avatars

    try:
        settings = load_avatars(config).consent
        if settings is None:
            stop(MISCONFIGURED, "avatars.consent: is not configured, so nothing is kept of anybody")
        with consents.opened(settings) as file:
            yield file
    except ConfigError as error:
        stop(MISCONFIGURED, *error.errors)
    except ConsentStoreRefused as refused:
        stop(MISCONFIGURED, str(refused))
    except (ConsentStoreError, OSError) as failure:
        stop(FAILED, f"avatars.consent.store: {failure}")


@main.command()
def demo() -> None:
    """Run sandbox, daemon and companion on loopback, in a temporary directory, until Ctrl-C."""
    from broker.cli.demo import run

    try:
        run(click.echo)
    except KeyboardInterrupt:
        click.echo("")


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine, on uvloop's loop if the extra [speed] is installed."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(work)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    faster: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return faster


def _configured(config: Path | None) -> Any:
    from broker.config.load import ConfigError, load

    try:
        return load(config)
    except ConfigError as error:
        stop(MISCONFIGURED, *error.errors)


def _asked(config: Path | None, path: str, key_file: Path | None) -> Any:
    """Ask the running daemon at the address in the configuration. No secret of an app is read."""
    from broker.cli import query
    from broker.config.load import ConfigError, load_server
    from broker.config.secret_files import LONGEST_SECRET, FileRefused, as_secret, read

    try:
        addresses = load_server(config).listen
        key = None
        if key_file is not None:
            text = read(key_file, LONGEST_SECRET)[0].decode("utf-8", "replace")
            key = as_secret(text, str(key_file)).reveal()
        return query.daemon(addresses, path, key)
    except ConfigError as error:
        stop(MISCONFIGURED, *error.errors)
    except (query.NoAnswer, FileRefused, OSError) as error:
        stop(FAILED, str(error))


async def _show_avatars(settings: Any) -> None:
    from broker.avatars import CompanionOptions
    from broker.avatars import serve as run

    options = CompanionOptions(
        broker=settings.broker,
        app=settings.app,
        key_file=settings.key_file,
        api_base=settings.wechat.api_base,
        timeout_s=settings.wechat.timeout,
        cache_ttl_s=settings.cache_ttl,
        proxy_images=settings.proxy_images,
        hosts=frozenset({settings.listen.host, *settings.allowed_hosts}),
        way_out=settings.wechat.way_out,
        consent=settings.consent,
        trusted_proxies=settings.trusted_proxies,
    )
    public = [settings.consent.listen] if settings.consent else []
    async with (
        _named_listeners("avatars.listen", [settings.listen]) as bound,
        _named_listeners("avatars.consent.listen", public) as asking,
    ):
        names = ", ".join(address for address, _ in bound)
        also = "".join(f", asks for consent on {address}" for address, _ in asking)
        await run(
            options,
            [sock for _, sock in bound],
            lambda: click.echo(f"token-broker avatars {__version__} serves on {names}{also}"),
            [sock for _, sock in asking],
        )


@contextlib.asynccontextmanager
async def _named_listeners(key: str, addresses: list[Any]) -> AsyncIterator[Any]:
    """Yield listeners; an address that is taken is complained about with its key."""
    from broker.system.sockets import AddressTaken, listeners

    async with contextlib.AsyncExitStack() as stack:
        try:
            bound = await stack.enter_async_context(listeners(addresses, ()))
        except AddressTaken:
            raise AddressTaken(
                f"{key}: {addresses[0]} is taken: another program is there; stop it or change the"
                " key"
            ) from None
        yield bound
