"""The manifests for Kubernetes and Compose: by the schemas, and by what the daemon takes."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import kubernetes_validate
import pytest
import yaml

from broker import __version__
from broker.config.load import load
from broker.config.notices import notices
from tests.harness.doubles import CANARY
from tests.harness.places import DEPLOY, ROOT

MANIFESTS: Final = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
COMPOSE: Final = DEPLOY / "container/compose.yaml"
CONTAINERFILE: Final = (DEPLOY / "container/Containerfile").read_text()
OLDEST: Final = "1.29.0"  # the first with native sidecars that need no feature gate
SECRETS: Final = "/etc/token-broker/secrets"
UID: Final = 10001


def documents(*paths: Path) -> Iterator[dict[str, Any]]:
    for path in paths:
        yield from yaml.safe_load_all(path.read_text())


def pods() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{document['kind']} {document['metadata']['name']}", document["spec"]["template"])
        for document in documents(*MANIFESTS)
        if document["kind"] in {"Deployment", "StatefulSet"}
    ]


def broker_of(pod: Mapping[str, Any]) -> dict[str, Any]:
    spec = pod["spec"]
    both = [*spec.get("initContainers", []), *spec["containers"]]
    (found,) = [one for one in both if one["name"] == "token-broker"]
    assert isinstance(found, dict)
    return found


PODS: Final = pytest.mark.parametrize(
    "pod", [pod for _, pod in pods()], ids=[it for it, _ in pods()]
)


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
def test_every_manifest_is_valid_to_the_last_key(version: str) -> None:
    kinds = set()
    for document in documents(*MANIFESTS):
        kinds.add(document["kind"])
        if document["kind"] == "PodMonitor":  # the Prometheus operator's
            continue
        kubernetes_validate.validate(document, version, strict=True)
    assert {"StatefulSet", "Deployment", "PodDisruptionBudget", "NetworkPolicy"} <= kinds


@PODS
def test_the_daemon_takes_the_environment_of_each_pod(pod: dict[str, Any], tmp_path: Path) -> None:
    for name in ("main.secret", "services.key"):
        (tmp_path / name).write_text(f"{CANARY}-{name}")
        (tmp_path / name).chmod(0o600)
    environ = {"STATE_DIRECTORY": str(tmp_path)}
    for variable in broker_of(pod)["env"]:
        value = variable.get("value", "from-elsewhere")
        environ[variable["name"]] = value.replace(SECRETS, str(tmp_path))
    settings = load(None, environ)
    assert list(settings.apps) == ["main"]
    assert notices(settings) == []
    beyond = [it for it in settings.server.listen if not it.is_loopback]
    assert bool(beyond) == bool(settings.clients)
    if beyond:
        port = broker_of(pod)["ports"][0]["containerPort"]
        assert [it.port for it in beyond] == [port]


@PODS
def test_each_pod_has_no_more_rights_than_it_needs(pod: dict[str, Any]) -> None:
    spec, broker = pod["spec"], broker_of(pod)
    rights = {**spec["securityContext"], **broker["securityContext"]}
    assert rights["runAsNonRoot"]
    assert rights["runAsUser"] == rights["fsGroup"] == UID
    assert rights["readOnlyRootFilesystem"]
    assert rights["allowPrivilegeEscalation"] is False
    assert rights["capabilities"] == {"drop": ["ALL"]}
    assert rights["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is spec["enableServiceLinks"] is False
    assert spec["terminationGracePeriodSeconds"] >= 45  # as long as the unit gives
    mounts = {it["mountPath"]: it for it in broker["volumeMounts"]}
    assert mounts[SECRETS]["readOnly"]
    assert "/run/token-broker" in mounts
    volumes = {it["name"]: it for it in spec["volumes"]}
    assert volumes[mounts[SECRETS]["name"]]["secret"]["defaultMode"] == 0o440
    assert broker["image"] == f"token-broker:{_next_version()}"


def _next_version() -> str:
    found = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert found
    assert found[1] >= __version__
    return found[1]


def test_a_store_of_one_owner_has_one_pod() -> None:
    for document in documents(*MANIFESTS):
        spec = document.get("spec", {})
        if "template" in spec:
            shared = "TOKEN_BROKER_STORE__URL" in str(broker_of(spec["template"])["env"])
            assert spec["replicas"] == (3 if shared else 1)
            if not shared and document["kind"] == "Deployment":
                assert spec["strategy"] == {"type": "Recreate"}


def test_whatever_selects_pods_finds_some() -> None:
    labels = [pod["metadata"]["labels"] for _, pod in pods()]
    ports = {it["name"] for _, pod in pods() for it in broker_of(pod).get("ports", [])}
    for document in documents(*MANIFESTS):
        spec = document.get("spec", {})
        selector = spec.get("podSelector") or spec.get("selector") or {}
        wanted = selector.get("matchLabels", selector)
        if wanted:
            assert any(wanted.items() <= each.items() for each in labels), document["kind"]
        for endpoint in spec.get("podMetricsEndpoints", []):
            assert endpoint["port"] in ports


def test_compose_gives_the_daemon_what_it_takes(tmp_path: Path) -> None:
    text = (
        COMPOSE.read_text().replace("${APPID:-}", "wx1").replace("${CLIENT_KEY_SHA256:-}", "a" * 64)
    )
    compose = yaml.safe_load(text)
    (tmp_path / "main.secret").write_text(CANARY)
    (tmp_path / "main.secret").chmod(0o600)
    more = {"STATE_DIRECTORY": str(tmp_path), "CREDENTIALS_DIRECTORY": str(tmp_path)}
    for name in ("try", "broker"):
        service = compose["services"][name]
        settings = load(None, {**service["environment"], **more})
        assert [str(it) for it in settings.server.listen] == ["0.0.0.0:8765"]
        assert service["ports"] == ["127.0.0.1:8765:8765"]
        assert [it.code for it in notices(settings)] == (["plaintext"] if name == "try" else [])
    key = re.search(r"Bearer ([\w-]+)'", text)
    assert key
    digest = compose["services"]["try"]["environment"]["TOKEN_BROKER_CLIENTS__TRY__KEY_SHA256"]
    assert hashlib.sha256(key[1].encode()).hexdigest() == digest
    assert compose["services"]["broker"]["secrets"] == ["main.secret"]
    assert all(one["read_only"] for one in compose["services"].values())


def test_the_image_is_built_from_what_is_not_ignored() -> None:
    kept = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = re.search(r"^COPY ((?!--)[^/]+) /src/\n^COPY (\w+) ", CONTAINERFILE, re.MULTILINE)
    assert copied
    assert {*copied[1].split(), copied[2]} == kept
    assert all((ROOT / name).exists() for name in kept)
    assert "HEALTHCHECK --interval=30s" in CONTAINERFILE
    assert f"USER {UID}:{UID}" in CONTAINERFILE
