"""An SDK for Python, built by a recipe.

stdin says line by line what to do; stdout answers each with a line of JSON.

`python in_python.py RECIPE [SANDBOX]`: what is meant for WeChat goes to the sandbox, without one it
is refused.
"""

import hashlib
import json
import sys
import threading
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import requests

WECHAT: Final = "https://api.weixin.qq.com"
WECOM: Final = "https://qyapi.weixin.qq.com"
RECIPE: Final = Path(sys.argv[1]).read_text()
SANDBOX: Final = sys.argv[2] if len(sys.argv) > 2 else None


def built() -> Any:
    """A client as the recipe makes it."""
    rooms: dict[str, Any] = {}
    # The page's own code, that is the point
    exec(compile(RECIPE, "recipe", "exec"), rooms)  # noqa: S102
    client = rooms["client"]
    if "oauth" in rooms:
        client.oauth = rooms["oauth"]
    if "Robot" in rooms:
        assert rooms["Robot"]().client is client
    return client


def redirect() -> None:
    """Send to the sandbox what the SDK means for WeChat."""
    send = requests.adapters.HTTPAdapter.send

    def to_sandbox(
        self: requests.adapters.HTTPAdapter,
        request: requests.PreparedRequest,
        *args: Any,
        **kwargs: Any,
    ) -> requests.Response:
        url = str(request.url)
        assert not url.startswith(WECOM), "the SDK asked WeCom itself"
        if url.startswith(WECHAT):
            assert SANDBOX, "the SDK asked WeChat itself"
            request.url = SANDBOX + url.removeprefix(WECHAT)
        return send(self, request, *args, **kwargs)

    requests.adapters.HTTPAdapter.send = to_sandbox  # type: ignore[method-assign]


def call(client: Any) -> Any:
    """How many followers there are, which is how the sandbox says that it took the token.

    A company's app sends a message instead: 0.
    """
    if isinstance(client, partial):
        return client(title="Hello", content="to all").json()["errcode"]
    if hasattr(client, "corp_id"):
        return client.message.send_text("1000002", "@all", "Hello")["errcode"]
    return (client.user if hasattr(client, "user") else client).get_followers()["total"]


def upload(client: Any, path: str) -> Any:
    """The media_id of an uploaded file.

    The file is given by its name, as the page says: of an open file nothing is left for a second
    try.
    """
    file = (Path(path).name, Path(path).read_bytes())
    return (client.media.upload if hasattr(client, "media") else client.upload_media)(
        "image", file
    )["media_id"]


def download(client: Any, media_id: str) -> Any:
    """How large it is, and its hash."""
    content = (client.media.download if hasattr(client, "media") else client.download_media)(
        media_id
    ).content
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def ticket(client: Any) -> Any:
    """The ticket for pages; of the SDKs that know it."""
    return client.jsapi.get_jsapi_ticket()


def session(client: Any, code: str) -> Any:
    """Who logs in to a Mini Program."""
    return client.wxa.code_to_session(code)["openid"]


def web(client: Any, code: str) -> Any:
    """Who logs in to a page."""
    return client.oauth.fetch_access_token(code)["openid"]


def profile(client: Any) -> Any:
    """Use the user's token that `web` brought: renew it, ask whether it lives, and for a name."""
    renewed = client.oauth.refresh_access_token(client.oauth.refresh_token)["openid"]
    return [client.oauth.check_access_token(), renewed, client.oauth.get_user_info()["nickname"]]


def crowd(_: Any, many: int) -> Any:
    """So many services at once, each with a client of its own."""
    clients, answers = [built() for _ in range(many)], []
    threads = [
        threading.Thread(target=lambda one=one: answers.append(told(call, one))) for one in clients
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def told(do: Callable[..., Any], *arguments: Any) -> Any:
    """What came of it; of an exception its errcode and all that a log would hold of it."""
    try:
        return do(*arguments)
    except RecursionError:
        return {"errcode": None, "kind": "RecursionError", "text": ""}
    except Exception as error:  # noqa: BLE001 -- whatever the SDK raises
        errcode = getattr(error, "errcode", None) or int(str(error).partition(":")[0])
        return {"errcode": errcode, "kind": type(error).__name__, "text": traceback.format_exc()}


def main() -> None:
    """Do what stdin says."""
    redirect()
    deeds = {
        deed.__name__: deed
        for deed in (call, crowd, upload, download, ticket, session, web, profile)
    }
    client = built()
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps(told(deeds[name], client, *arguments)), flush=True)


if __name__ == "__main__":
    main()
