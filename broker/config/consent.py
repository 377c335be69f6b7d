"""What [avatars.consent] means: who asks people for their avatar, where, and for how long."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from broker.config.schema import AvatarsTable, ConfigDocument, ConsentTable
from broker.config.secret_reader import SecretReader
from broker.config.settings import ConsentSettings
from broker.core.secret import Secret
from broker.system.address import host_name, is_loopback, is_plaintext, parse_origin

SHORTEST_KEY: Final = 16  # characters of encryption_key_file
MESSAGE_TOKEN: Final = re.compile(r"[A-Za-z0-9]{3,32}")  # what WeChat's console accepts
MESSAGE_KEY: Final = re.compile(r"[A-Za-z0-9]{43}")
WHY_NEEDED: Final = {
    "operator": "who asks people for their avatar",
    "purpose": "what the avatars are shown for",
    "keep_days": "after how many days a picture is deleted",
    "contact": "where people reach the operator",
    "public_url": 'the address people open, such as "https://consent.example.com"',
    "listen": 'a listener of its own, such as "127.0.0.1:8767"',
}
WHICH_APP: Final = (
    "is needed: the AppID of avatars.app, which has no [apps] table in this configuration"
)
NOT_PUBLIC: Final = (
    "must be https:// and a bare host name, without port, path or IP address: WeChat accepts no"
    " other (http://127.0.0.1:PORT will do for the sandbox)"
)
NEEDS_CRYPTOGRAPHY: Final = (
    "needs the package cryptography: pip install 'wechat-token-broker[encryption]'"
)


def consent_settings(
    avatars: AvatarsTable, document: ConfigDocument, reader: SecretReader, *, with_secrets: bool
) -> ConsentSettings | None:
    """Return [avatars.consent], None where it is switched off or something is wrong with it.

    Every needed key that is missing is complained about. Files with secrets are only read
    `with_secrets`.
    """
    table = avatars.consent
    if table is None:
        return None
    missing = [name for name in WHY_NEEDED if getattr(table, name) is None]
    for name in missing:
        if not reader.problems.about("avatars", "consent", name):
            _complain(reader, name, f"is needed: {WHY_NEEDED[name]}")
    public_url = _public_url(table, reader)
    appid = _appid(avatars, table, document, reader)
    is_same = table.listen is not None and table.listen == avatars.listen
    if is_same and (avatars.listen.port or avatars.listen.path):  # port 0 is any free one
        _complain(reader, "listen", "must not be avatars.listen: this listener is public")
    if is_plaintext(table.authorize_url):
        _complain(reader, "authorize_url", "must be https, or on this machine")
    secrets = _secrets(table, reader, is_read=with_secrets)
    if missing or public_url is None or appid is None or table.listen is None:
        return None
    operator, purpose = table.operator or "", table.purpose or ""
    return ConsentSettings(
        operator=operator,
        purpose=purpose,
        keep_days=table.keep_days or 0,
        contact=table.contact or "",
        public_url=public_url,
        listen=table.listen,
        operator_en=table.operator_en or operator,
        purpose_en=table.purpose_en or purpose,
        appid=appid,
        store=_store(table, reader),
        renew=table.renew,
        verification_file=table.verification_file,
        picture_hosts=table.picture_hosts,
        authorize_url=table.authorize_url,
        **secrets,
    )


def _complain(reader: SecretReader, name: str, complaint: str) -> None:
    reader.problems.add(("avatars", "consent", name), complaint)


def _public_url(table: ConsentTable, reader: SecretReader) -> str | None:
    if table.public_url is None:
        return None
    try:
        origin = parse_origin(table.public_url)
        there = urlsplit(origin)
        host = there.hostname or ""
        if there.scheme == "http" and is_loopback(host):
            return origin
        is_bare = there.scheme == "https" and there.port is None and not is_loopback(host)
        if is_bare and "." in host_name(host):
            return origin
    except ValueError:
        pass
    _complain(reader, "public_url", NOT_PUBLIC)
    return None


def _appid(
    avatars: AvatarsTable, table: ConsentTable, document: ConfigDocument, reader: SecretReader
) -> str | None:
    """Return the AppID that asks: the key, that of the app in [apps], or `app` if it is one."""
    app = document.apps.get(avatars.app)
    named = avatars.app if re.fullmatch(r"wx[0-9A-Za-z_-]{1,62}", avatars.app) else None
    found = table.appid or (app.appid if app else None) or named
    about = reader.problems.about
    if found is None and not about("avatars", "app") and not about("avatars", "consent", "appid"):
        _complain(reader, "appid", WHICH_APP)
    return found


def _store(table: ConsentTable, reader: SecretReader) -> Path:
    if table.store is not None:
        return reader.home / table.store
    # systemd may name several directories; the first is ours.
    return Path(
        reader.environ.get("STATE_DIRECTORY", "").partition(":")[0], "consent.db"
    ).absolute()


def _secrets(
    table: ConsentTable, reader: SecretReader, *, is_read: bool
) -> dict[str, Secret | None]:
    """Return the four secrets by the names of their settings; None for those not read."""
    if table.renew and table.encryption_key_file is None:
        _complain(reader, "renew", "needs encryption_key_file: refresh tokens are kept sealed only")
    if table.previous_encryption_key_file is not None and table.encryption_key_file is None:
        _complain(
            reader,
            "previous_encryption_key_file",
            "needs encryption_key_file: the key that writes",
        )
    if table.message_key_file is not None and table.message_token_file is None:
        _complain(reader, "message_key_file", "needs message_token_file, which signs messages")
    found: dict[str, Secret | None] = {}
    for name in ("encryption_key", "previous_encryption_key", "message_token", "message_key"):
        file = getattr(table, f"{name}_file")
        if file is not None and name != "message_token" and find_spec("cryptography") is None:
            _complain(reader, f"{name}_file", NEEDS_CRYPTOGRAPHY)
        secret = None
        if file is not None and is_read:
            secret = reader.file(("avatars", "consent", f"{name}_file"), file)
        if secret is not None and (why := _why_not(name, secret.reveal())):
            _complain(reader, f"{name}_file", why)
        found[name] = secret
    return found


def _why_not(name: str, word: str) -> str:
    """Say why a secret will not do, or nothing. The sentence does not quote it."""
    if name == "message_token":
        return (
            "" if MESSAGE_TOKEN.fullmatch(word) else "a message token has 3 to 32 letters, digits"
        )
    if name == "message_key":
        return "" if MESSAGE_KEY.fullmatch(word) else "an EncodingAESKey has 43 letters and digits"
    if len(word) < SHORTEST_KEY:
        return f"a key has at least {SHORTEST_KEY} characters: openssl rand -base64 32"
    return ""
