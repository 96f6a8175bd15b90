"""
A small server that speaks the protocol of the Hugging Face Hub, for the genuine client on the loopback interface.

It knows users by their tokens, repositories of models, data sets and Spaces, branches and pull requests, pre-upload, LFS
objects with verification, commits, and downloads with ranges and entity tags; commits are atomic. Faults can be put in the way:

    with HubServer() as hub:
        hub.fail("POST", r"/commit/", status=500, times=1)
        HfApi(endpoint=hub.endpoint, token="hf_alice")...
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


LFS_SUFFIXES = (".safetensors", ".bin", ".png", ".pt")
TYPES = {"models": "model", "datasets": "dataset", "spaces": "space"}


@dataclass
class Commit:
    """A state of a repository."""

    oid: str
    title: str
    files: dict[str, bytes]


@dataclass
class Repository:
    """A repository: its branches (and pull requests, as `refs/pr/1`) point to commits."""

    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def resolve(self, revision: str) -> Commit | None:
        if revision in self.refs:
            return self.commits[self.refs[revision]]
        return next(
            (commit for oid, commit in self.commits.items() if oid.startswith(revision) and len(revision) >= 7), None
        )

    def commit(self, ref: str, title: str, files: dict[str, bytes]) -> Commit:
        content = json.dumps(
            [len(self.commits), title, sorted((n, hashlib.sha1(b).hexdigest()) for n, b in files.items())]
        )
        commit = Commit(hashlib.sha1(content.encode()).hexdigest(), title, files)
        self.commits[commit.oid] = commit
        self.refs[ref] = commit.oid
        return commit


@dataclass
class Fault:
    """What happens instead of an answer."""

    method: str
    pattern: str
    times: int
    status: int | None
    headers: dict[str, str]
    truncate: int | None


class HubServer:
    """
    The server; use it as a context manager.

    Args:
        tokens (`dict[str, str]`): User names by access token.

    Attributes:
        repositories (`dict[tuple[str, str], Repository]`): By type (`"model"`...) and name.
        requests (`list[tuple[str, str]]`): Method and path of every request.
    """

    def __init__(self, tokens: dict[str, str] | None = None) -> None:
        self.tokens = {"hf_alice": "alice"} if tokens is None else tokens
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def endpoint(self) -> str:
        """What goes into `HF_ENDPOINT`."""
        return f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> HubServer:
        self.thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def fail(
        self,
        method: str,
        pattern: str,
        *,
        status: int | None = None,
        times: int = 1,
        headers: dict[str, str] | None = None,
        truncate: int | None = None,
    ) -> None:
        """
        Put a fault in the way of the next requests that match.

        Args:
            method (`str`): Of the request.
            pattern (`str`): Regular expression that the path matches somewhere.
            status (`int`, *optional*): Answer this error.
            times (`int`, *optional*, defaults to 1): How many requests fail.
            headers (`dict`, *optional*): Headers of the error.
            truncate (`int`, *optional*): Break off after so many bytes of the body.
        """
        self.faults.append(Fault(method, pattern, times, status, headers or {}, truncate))

    def fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and re.search(fault.pattern, path):
                    fault.times -= 1
                    return fault
        return None

    def files(self, repo: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        """The files of a repository at a revision."""
        commit = self.repositories[kind, repo].resolve(revision)
        assert commit is not None
        return commit.files


class _Reply(Exception):
    """Ends the handling of a request with an error."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Silent."""

    def do_GET(self) -> None:
        self._handle("GET")

    def do_HEAD(self) -> None:
        self._handle("HEAD")

    def do_POST(self) -> None:
        self._handle("POST")

    def do_PUT(self) -> None:
        self._handle("PUT")

    def _handle(self, method: str) -> None:
        url = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.body = self._read_body()
        with self.hub.lock:
            self.hub.requests.append((method, self.path))
        fault = self.hub.fault(method, self.path)
        self.truncate = None if fault is None else fault.truncate
        if fault is not None and fault.status is not None:
            self._send(fault.status, {"error": "a fault on purpose"}, fault.headers)
            return
        try:
            for verb, pattern, action in ROUTES:
                if verb == ("GET" if method == "HEAD" else method) and (match := re.fullmatch(pattern, url.path)):
                    with self.hub.lock:
                        action(self, **{name: unquote(value) for name, value in match.groupdict(default="").items()})
                    return
            raise _Reply(404, f"no such address: {method} {url.path}")
        except _Reply as reply:
            headers = {"X-Error-Code": reply.code} if reply.code else {}
            self._send(reply.status, {"error": reply.message}, {"X-Error-Message": reply.message, **headers})

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.truncate is None:
            self.wfile.write(body)
        else:
            self.wfile.write(body[: self.truncate])
            self.close_connection = True

    # --- who and what ------------------------------------------------------------------------------------------------

    def _user(self, required: bool = True) -> str | None:
        header = self.headers.get("Authorization", "")
        user = self.hub.tokens.get(header.removeprefix("Bearer "))
        if user is None and (header or required):
            raise _Reply(401, "Invalid username or password.")
        return user

    def _repository(self, kind: str, repo: str, write: bool = False) -> Repository:
        user = self._user(required=write)
        found = self.hub.repositories.get((kind, repo))
        if found is None or (found.private and user != repo.split("/")[0]):
            # Like the Hub, which doesn't tell strangers what exists.
            raise _Reply(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and user != repo.split("/")[0] and "create_pr" not in self.query:
            raise _Reply(403, f"You have no rights to write to {repo}.")
        return found

    def _commit(self, repository: Repository, revision: str) -> Commit:
        commit = repository.resolve(revision)
        if commit is None:
            raise _Reply(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # --- the addresses -----------------------------------------------------------------------------------------------

    def whoami(self) -> None:
        self._send(200, {"type": "user", "name": self._user(), "orgs": []})

    def create(self) -> None:
        user = self._user()
        wanted = json.loads(self.body)
        name, kind = f"{wanted.get('organization') or user}/{wanted['name']}", wanted.get("type", "model")
        if name.split("/")[0] != user:
            raise _Reply(403, f"You have no rights to create a repository under {name.split('/')[0]}.")
        url = f"{self.hub.endpoint}/{'' if kind == 'model' else kind + 's/'}{name}"
        if (kind, name) in self.hub.repositories:
            self._send(409, {"error": "You already created this repo", "url": url})
            return
        private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        repository = Repository(
            private, settings={key: value for key, value in wanted.items() if key.startswith("sdk")}
        )
        repository.commit("main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.hub.repositories[kind, name] = repository
        self._send(200, {"url": url, "name": name, "id": name})

    def branch(self, kind: str, repo: str, name: str) -> None:
        repository = self._repository(TYPES[kind], repo, write=True)
        if name in repository.refs:
            raise _Reply(409, "Reference already exists")
        start = json.loads(self.body or b"{}").get("startingPoint", "main")
        repository.refs[name] = self._commit(repository, start).oid
        self._send(200, {})

    def refs(self, kind: str, repo: str) -> None:
        repository = self._repository(TYPES[kind], repo)
        pulls = {name: oid for name, oid in repository.refs.items() if name.startswith("refs/pr/")}
        branches = [
            {"name": n, "ref": f"refs/heads/{n}", "targetCommit": oid}
            for n, oid in repository.refs.items()
            if n not in pulls
        ]
        self._send(
            200,
            {
                "branches": branches,
                "tags": [],
                "converts": [],
                "pullRequests": [{"name": n, "ref": n, "targetCommit": oid} for n, oid in pulls.items()],
            },
        )

    def validate(self) -> None:
        self._send(200, {"errors": [], "warnings": []})

    def preupload(self, kind: str, repo: str, revision: str) -> None:
        repository = self._repository(TYPES[kind], repo, write=True)
        files = self._commit(repository, revision).files
        wanted = json.loads(self.body)["files"]
        self._send(
            200,
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                        "shouldIgnore": False,
                        "oid": _oid(file["path"], files[file["path"]]) if file["path"] in files else None,
                    }
                    for file in wanted
                ]
            },
        )

    def lfs_batch(self, prefix: str, repo: str) -> None:
        self._user()
        self._repository(prefix.rstrip("s/") or "model", repo)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            entry: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.objects:
                entry["actions"] = {
                    "upload": {"href": f"{self.hub.endpoint}/lfs/{wanted['oid']}"},
                    "verify": {"href": f"{self.hub.endpoint}/lfs-verify/{repo}"},
                }
            objects.append(entry)
        self._send(200, {"transfer": "basic", "objects": objects})

    def lfs_upload(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Reply(400, "the content does not have this hash")
        self.hub.objects[oid] = self.body
        self._send(200, {})

    def lfs_verify(self, repo: str) -> None:
        self._user()
        wanted = json.loads(self.body)
        if len(self.hub.objects.get(wanted["oid"], b"")) != wanted["size"]:
            raise _Reply(404, "no such object")
        self._send(200, {})

    def commit(self, kind: str, repo: str, revision: str) -> None:
        repository = self._repository(TYPES[kind], repo, write=True)
        files = dict(self._commit(repository, revision).files)
        title = ""
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                title = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise _Reply(400, f"the object of {value['path']} was never uploaded")
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif item["key"] == "deletedFile":
                files.pop(value["path"])
            else:
                raise _Reply(400, f"unknown operation {item['key']}")
        pull = "create_pr" in self.query
        ref = f"refs/pr/{1 + sum(name.startswith('refs/pr/') for name in repository.refs)}" if pull else revision
        commit = repository.commit(ref, title, files)
        base = f"{self.hub.endpoint}/{'' if kind == 'models' else kind + '/'}{repo}"
        number = ref.rpartition("/")[2]
        self._send(
            200,
            {
                "success": True,
                "commitOid": commit.oid,
                "commitUrl": f"{base}/commit/{commit.oid}",
                "pullRequestUrl": f"{base}/discussions/{number}" if pull else None,
            },
        )

    def info(self, kind: str, repo: str, revision: str = "main") -> None:
        repository = self._repository(TYPES[kind], repo)
        commit = self._commit(repository, revision or "main")
        siblings: list[dict[str, Any]] = [{"rfilename": name} for name in commit.files]
        if self.query.get("blobs"):
            siblings = [{"rfilename": name, **_entry(name, content)} for name, content in commit.files.items()]
            for entry in siblings:
                entry["blobId"] = entry.pop("oid")
        self._send(
            200, {"id": repo, "sha": commit.oid, "private": repository.private, "siblings": siblings, "tags": []}
        )

    def tree(self, kind: str, repo: str, revision: str) -> None:
        commit = self._commit(self._repository(TYPES[kind], repo), revision)
        self._send(
            200, [{"type": "file", "path": name, **_entry(name, content)} for name, content in commit.files.items()]
        )

    def resolve(self, prefix: str, repo: str, revision: str, path: str) -> None:
        repository = self._repository(prefix.rstrip("s/") or "model", repo)
        commit = self._commit(repository, revision)
        headers = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            body = {"error": "Entry not found"}
            self._send(404, body, {**headers, "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
            return
        content = commit.files[path]
        headers["ETag"] = f'"{_oid(path, content)}"'
        headers["Accept-Ranges"] = "bytes"
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted and 0 < int(wanted[1]) < len(content):
            start = int(wanted[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self._send(206, content[start:], {**headers, "Content-Type": "application/octet-stream"})
            return
        self._send(200, content, {**headers, "Content-Type": "application/octet-stream"})


def _oid(path: str, content: bytes) -> str:
    if path.endswith(LFS_SUFFIXES):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    if path.endswith(LFS_SUFFIXES):
        oid = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": oid, "sha256": oid, "size": len(content), "pointerSize": 130}
    return entry


_API = r"/api/(?P<kind>models|datasets|spaces)/(?P<repo>[^/]+/[^/]+)"
_FILES = r"/(?P<prefix>datasets/|spaces/|)(?P<repo>[^/]+/[^/]+)"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate),
    ("POST", _API + r"/branch/(?P<name>[^/]+)", _Handler.branch),
    ("GET", _API + r"/refs", _Handler.refs),
    ("POST", _API + r"/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    ("POST", _API + r"/commit/(?P<revision>[^/]+)", _Handler.commit),
    ("GET", _API + r"/revision/(?P<revision>[^/]+)", _Handler.info),
    ("GET", _API + r"/tree/(?P<revision>[^/]+)/?", _Handler.tree),
    ("GET", _API, _Handler.info),
    ("POST", _FILES + r"\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", _Handler.lfs_upload),
    ("POST", r"/lfs-verify/(?P<repo>.+)", _Handler.lfs_verify),
    ("GET", _FILES + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
]
