"""A Hugging Face Hub in memory, on loopback, for tests: what `huggingface_hub` needs to push a
repository and read it.

    with FakeHub(tmp_path) as hub:
        subprocess.run([sys.executable, "push.py"], env=hub.environment(), check=True)
        assert hub.files("tester/model")["README.md"].startswith(b"---")

It speaks the part of the Hub's HTTP interface that huggingface_hub 2.4 uses for whoami, creating
a repository, uploading (inline and LFS), listing and downloading. There is one branch, `main`,
and one user, `tester`. A request that it does not know is answered with 501, so that no test
passes because something was quietly ignored.
"""

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import yaml

USER = "tester"
TOKEN = "hf_fake"
LFS_FROM_BYTES = 10_000  # the real Hub's limit is 10 MB, too much to push in a test
TEXT_SUFFIXES = (".json", ".md", ".txt", ".jinja")
REPO = r"(?P<repo>[^/]+/[^/]+)"
API_REPO = rf"/api/(?P<type>model|dataset|space)s/{REPO}"
FILE_REPO = rf"/(?:(?P<type>dataset|space)s/)?{REPO}"


@dataclass(frozen=True)
class File:
    """A file in a commit."""

    content: bytes
    is_lfs: bool = False

    @property
    def git_oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True)
class Commit:
    """Everything that a repository holds at one point, by path."""

    message: str
    files: dict[str, File]
    parent: str = ""

    @property
    def sha(self) -> str:
        tree = sorted((path, file.git_oid) for path, file in self.files.items())
        return hashlib.sha1(repr((self.parent, self.message, tree)).encode()).hexdigest()


@dataclass
class Repo:
    """A repository: its commits, oldest first."""

    private: bool = False
    commits: list[Commit] = field(default_factory=lambda: [Commit("initial commit", {})])

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    def at(self, revision: str) -> Commit:
        """The commit of `main` or of a full sha; a 404 for any other name."""
        if revision == "main":
            return self.head
        for commit in self.commits:
            if commit.sha == revision:
                return commit
        raise HttpError(404, "RevisionNotFound")


@dataclass(frozen=True)
class Request:
    """A request that matched a route; `groups` are the named parts of its path, unquoted."""

    groups: dict[str, str]
    body: bytes
    url: str

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Response:
    """An answer: bytes as they are, anything else as JSON."""

    content: Any
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200


class HttpError(Exception):
    """An answer other than 200; the client tells its errors apart by the code."""

    def __init__(self, status: int, code: str, **headers: str) -> None:
        super().__init__(code)
        self.response = Response({"error": code}, {"X-Error-Code": code, **headers}, status)


class FakeHub:
    """The Hub: a server while in its `with` block, and what was pushed to it.

    Args:
        home: an empty folder for the clients' cache, so that they neither read nor change the
            user's own.

    Attributes:
        repos: by (type, id), such as ("model", "tester/tiny").
        requests: "METHOD /path" of each request so far.
        failures: statuses with which the next commits are answered, which then do nothing.
        upload_failures: the same of large files that are uploaded; 0 lets one through.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.repos: dict[tuple[str, str], Repo] = {}
        self.requests: list[str] = []
        self.failures: list[int] = []
        self.upload_failures: list[int] = []
        self._lfs: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self) -> dict[str, str]:
        """The environment for a subprocess whose Hub this is.

        huggingface_hub reads these variables when it is imported, so setting them in a running
        process is too late.
        """
        ours = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS_OFFLINE"))
        }
        return ours | {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(self.home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def files(self, repo_id: str, repo_type: str = "model") -> dict[str, bytes]:
        """What the head of a repository holds, by path."""
        return {
            path: file.content for path, file in self.repos[repo_type, repo_id].head.files.items()
        }

    def answer(self, method: str, path: str, body: bytes, token: str | None) -> Response:
        """Find the route of a request and run it."""
        with self._lock:
            self.requests.append(f"{method} {path}")
            for allowed, pattern, route in ROUTES:
                if method in allowed and (match := re.fullmatch(pattern, path)):
                    groups = {name: unquote(part or "") for name, part in match.groupdict().items()}
                    try:
                        if route not in WITHOUT_TOKEN and token != TOKEN:
                            raise HttpError(401, "Unauthorized")
                        return route(self, Request(groups, body, self.url))
                    except HttpError as error:
                        return error.response
            return Response({"error": f"the fake Hub does not know {method} {path}"}, status=501)

    def repo(self, request: Request) -> Repo:
        """The repository in the path of a request, or a 404."""
        repo = self.repos.get((request.groups["type"] or "model", request.groups["repo"]))
        if repo is None:
            raise HttpError(404, "RepoNotFound")
        return repo


def whoami(hub: FakeHub, request: Request) -> Response:
    return Response({"type": "user", "name": USER, "orgs": [], "auth": {"type": "access_token"}})


def validate_card(hub: FakeHub, request: Request) -> Response:
    return Response({"errors": [], "warnings": []})


def create_repo(hub: FakeHub, request: Request) -> Response:
    wanted = request.json()
    repo_id = f"{wanted.get('organization') or USER}/{wanted['name']}"
    repo_type = wanted.get("type") or "model"
    url = f"{request.url}/{'' if repo_type == 'model' else repo_type + 's/'}{repo_id}"
    if (repo_type, repo_id) in hub.repos:
        return Response({"error": "You already created this repo", "url": url}, status=409)
    hub.repos[repo_type, repo_id] = Repo(private=wanted.get("visibility") == "private")
    return Response({"url": url, "name": repo_id, "id": repo_id})


def choose_upload_modes(hub: FakeHub, request: Request) -> Response:
    hub.repo(request)

    def mode(file: dict[str, Any]) -> str:
        return (
            "lfs"
            if file["size"] >= LFS_FROM_BYTES and not file["path"].endswith(TEXT_SUFFIXES)
            else "regular"
        )

    files = request.json()["files"]
    return Response(
        {
            "files": [
                {"path": f["path"], "uploadMode": mode(f), "shouldIgnore": False} for f in files
            ]
        }
    )


def start_lfs_uploads(hub: FakeHub, request: Request) -> Response:
    hub.repo(request)
    objects = [
        {"oid": wanted["oid"], "size": wanted["size"]} for wanted in request.json()["objects"]
    ]
    for item in objects:
        if item["oid"] not in hub._lfs:
            item["actions"] = {"upload": {"href": f"{request.url}/lfs/{item['oid']}"}}
    return Response(
        {"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"}
    )


def receive_lfs(hub: FakeHub, request: Request) -> Response:
    oid = request.groups["oid"]
    if hub.upload_failures and (status := hub.upload_failures.pop(0)):
        raise HttpError(status, "Unavailable")
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise HttpError(400, "LfsDigestMismatch")
    hub._lfs[oid] = request.body
    return Response({})


def commit(hub: FakeHub, request: Request) -> Response:
    repo = hub.repo(request)
    if hub.failures:
        raise HttpError(hub.failures.pop(0), "Unavailable")
    message, files = "", dict(repo.at(request.groups["revision"]).files)
    for line in request.body.splitlines():
        entry = json.loads(line)
        value = entry["value"]
        match entry["key"]:
            case "header":
                message = value["summary"]
            case "file":
                files[value["path"]] = File(base64.b64decode(value["content"]))
            case "lfsFile":
                if value["oid"] not in hub._lfs:
                    raise HttpError(400, "LfsObjectMissing")
                files[value["path"]] = File(hub._lfs[value["oid"]], is_lfs=True)
            case "deletedFile":
                files.pop(value["path"], None)
            case other:
                raise HttpError(501, f"the fake Hub does not know the commit entry {other!r}")
    repo.commits.append(Commit(message, files, parent=repo.head.sha))
    sha = repo.head.sha
    url = f"{request.url}/{request.groups['repo']}/commit/{sha}"
    return Response({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})


def repo_info(hub: FakeHub, request: Request) -> Response:
    repo = hub.repo(request)
    at = repo.at(request.groups.get("revision") or "main")
    repo_id = request.groups["repo"]
    siblings = [{"rfilename": path} for path in at.files]
    answer = {"id": repo_id, "sha": at.sha, "private": repo.private, "tags": []}
    card = at.files["README.md"].content.decode() if "README.md" in at.files else ""
    if card.startswith("---\n"):
        answer["cardData"] = yaml.safe_load(card.split("---\n")[1])
    return Response(answer | {"siblings": siblings})


def list_files(hub: FakeHub, request: Request) -> Response:
    """Every file at or below a path, as with `recursive=True`."""
    at, folder = hub.repo(request).at(request.groups["revision"]), request.groups["path"]
    listed = []
    for path, file in at.files.items():
        if not folder or path == folder or path.startswith(f"{folder}/"):
            size = len(file.content)
            lfs = (
                {"lfs": {"oid": file.sha256, "size": size, "pointerSize": 130}}
                if file.is_lfs
                else {}
            )
            listed.append({"type": "file", "path": path, "size": size, "oid": file.git_oid, **lfs})
    if folder and not listed:
        raise HttpError(404, "EntryNotFound")
    return Response(listed)


def download(hub: FakeHub, request: Request) -> Response:
    at = hub.repo(request).at(request.groups["revision"])
    file = at.files.get(request.groups["path"])
    if file is None:
        raise HttpError(404, "EntryNotFound", **{"X-Repo-Commit": at.sha})
    etag = file.sha256 if file.is_lfs else file.git_oid
    return Response(
        file.content,
        {"ETag": f'"{etag}"', "X-Repo-Commit": at.sha, "Content-Type": "application/octet-stream"},
    )


# The client sends no token with a card to validate, nor with an LFS upload, whose real address is
# signed.
WITHOUT_TOKEN = (validate_card, receive_lfs, repo_info, list_files, download)
ROUTES: list[tuple[tuple[str, ...], str, Callable[[FakeHub, Request], Response]]] = [
    (("GET",), "/api/whoami-v2", whoami),
    (("POST",), "/api/validate-yaml", validate_card),
    (("POST",), "/api/repos/create", create_repo),
    (("POST",), rf"{API_REPO}/preupload/(?P<revision>[^/]+)", choose_upload_modes),
    (("POST",), rf"{FILE_REPO}\.git/info/lfs/objects/batch", start_lfs_uploads),
    (("PUT",), "/lfs/(?P<oid>[0-9a-f]{64})", receive_lfs),
    (("POST",), rf"{API_REPO}/commit/(?P<revision>[^/]+)", commit),
    (("GET",), rf"{API_REPO}(?:/revision/(?P<revision>[^/]+))?", repo_info),
    (("GET",), rf"{API_REPO}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", list_files),
    (("GET", "HEAD"), rf"{FILE_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", download),
]


def _handler_of(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self) -> None:
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            response = hub.answer(self.command, urlsplit(self.path).path, self.read_body(), token)
            content = response.content
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(response.status)
            headers = {
                "Content-Type": "application/json",
                **response.headers,
                "Content-Length": str(len(body)),
            }
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = respond

        def read_body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing: `FakeHub.requests` has them."""

    return Handler
