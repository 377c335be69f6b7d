"""Events as WeChat pushes them (WECHAT.md W116, W137): signed, XML or JSON, plain or encrypted."""

import base64
import hashlib
import json
import os
import secrets
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

TIMEOUT_S: Final = 5  # as long as WeChat waits
UNSUBSCRIBE: Final = "unsubscribe"


@dataclass(frozen=True)
class EventOrder:
    """Which event of whose; ``created_at`` is Unix seconds."""

    appid: str
    event: str
    openid: str
    revoke_info: str
    created_at: int

    def fields(self) -> dict[str, Any]:
        """Return the message's fields. Unfollowing has none of those about authorisation."""
        common = {
            "ToUserName": "gh_0123456789ab",
            "FromUserName": self.openid,
            "CreateTime": self.created_at,
            "MsgType": "event",
            "Event": self.event,
        }
        if self.event == UNSUBSCRIBE:
            return common | {"EventKey": ""}
        return common | {
            "OpenID": self.openid,
            "AppID": self.appid,
            **({"RevokeInfo": self.revoke_info} if self.revoke_info else {}),
        }


@dataclass(frozen=True)
class PushedMessage:
    """What goes over the wire."""

    query: dict[str, str]
    body: bytes
    content_type: str


def signed(
    order: EventOrder, token: str, message_key: str | None, form: str, now: int
) -> PushedMessage:
    """Write a message as WeChat does. JSON has a blank before some keys (WECHAT.md W118)."""
    body = _json(order.fields()) if form == "json" else _xml(order.fields())
    timestamp, nonce = str(now), str(secrets.randbelow(10**9))
    query = {
        "signature": _signature(token, timestamp, nonce),
        "timestamp": timestamp,
        "nonce": nonce,
        "openid": order.openid,
    }
    if message_key is not None:
        sealed = _encrypted(body, message_key, order.appid)
        envelope = {"ToUserName": "gh_0123456789ab", "Encrypt": sealed}
        body = json.dumps(envelope).encode() if form == "json" else _xml(envelope)
        signature = _signature(token, timestamp, nonce, sealed)
        query |= {"encrypt_type": "aes", "msg_signature": signature}
    return PushedMessage(query, body, "application/json" if form == "json" else "text/xml")


async def pushed(url: str, message: PushedMessage) -> dict[str, Any]:
    """Send a message once; return the status and the text that came back."""
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    headers = {"Content-Type": message.content_type, "User-Agent": "Mozilla/4.0"}
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.post(url, params=message.query, data=message.body, headers=headers) as answer,
    ):
        return {"status": answer.status, "body": (await answer.text())[:2000]}


def _signature(*words: str) -> str:
    return hashlib.sha1("".join(sorted(words)).encode(), usedforsecurity=False).hexdigest()


def _xml(fields: dict[str, Any]) -> bytes:
    lines = [
        f"<{name}>{value}</{name}>"
        if isinstance(value, int)
        else f"<{name}><![CDATA[{value}]]></{name}>"
        for name, value in fields.items()
    ]
    return "\n".join(["<xml>", *lines, "</xml>"]).encode()


def _json(fields: dict[str, Any]) -> bytes:
    blank = {"OpenID", "AppID", "RevokeInfo"}
    named = {f" {name}" if name in blank else name: value for name, value in fields.items()}
    return json.dumps(named, ensure_ascii=False).encode()


def _encrypted(message: bytes, message_key: str, appid: str) -> str:
    """Encrypt as WECHAT.md W138 says. Needs the package cryptography."""
    from cryptography.hazmat.primitives.ciphers import (  # noqa: PLC0415 -- an extra
        Cipher,
        algorithms,
        modes,
    )

    key = base64.b64decode(f"{message_key}=")
    plain = os.urandom(16) + len(message).to_bytes(4) + message + appid.encode()
    pad = 32 - len(plain) % 32
    encryptor = Cipher(algorithms.AES(key), modes.CBC(key[:16])).encryptor()
    sealed = encryptor.update(plain + bytes([pad]) * pad) + encryptor.finalize()
    return base64.b64encode(sealed).decode()
