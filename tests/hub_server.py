"""A small model hub on 127.0.0.1 that speaks the part of the hub's protocol that huggingface_hub asks for.

Two servers, as in the real one: the hub (model info, revisions, resolve) and the store that large files are redirected
to. The real client reaches it through HF_ENDPOINT. Tests set what goes wrong as attributes.

    with HubServer() as hub:
        hub.add("Qwen/Qwen2.5-0.5B", folder)
        os.environ["HF_ENDPOINT"] = hub.address
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = re.compile(r".*\.(safetensors|bin|gguf|model)|tokenizer\.json")  # what the hub keeps in its store


@dataclass
class Repository:
    """The files of a model at its commits. `branches` maps names to commits."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    license: str | None = "apache-2.0"
    gated: bool = False  # its files are refused without `token`
    private: bool = False  # all of it is
    token: str = "hf_let_me_in"
    info: dict[str, Any] = field(default_factory=dict)  # overrides what the model's info says
    lies: dict[str, dict[str, Any]] = field(default_factory=dict)  # file -> what its sibling says instead


@dataclass(frozen=True)
class Request:
    """One request, as it came."""

    method: str
    path: str
    range: str | None
    authorization: str | None
    server: str


class HubServer:
    """Hub and store. `requests` has all that was asked.

    cut: file -> bytes after which the connection is cut, once. stall: file -> bytes after which nothing more comes.
    broken: every request is answered with this status. moved: old id -> new id.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.cut: dict[str, int] = {}
        self.stall: dict[str, int] = {}
        self.moved: dict[str, str] = {}
        self.broken: int | None = None
        self.store_broken: int | None = None
        self.stalled, self.released = threading.Event(), threading.Event()
        self._servers = {name: self._serve(name) for name in ("hub", "store")}
        self.address, self.store = (f"http://127.0.0.1:{s.server_address[1]}" for s in self._servers.values())

    def __enter__(self) -> HubServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        for server in self._servers.values():
            server.shutdown()
            server.server_close()

    def add(self, model_id: str, folder: Path, branch: str = "main", **extra: bytes) -> str:
        """Publish the files of a folder, and `extra` ones by name, as the newest commit of a branch. Returns it."""
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
        return self.publish(model_id, {**files, **extra}, branch)

    def publish(self, model_id: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Publish files by name as the newest commit of a branch. Returns the commit."""
        repository = self.repositories.setdefault(model_id, Repository())
        digest = hashlib.sha1(branch.encode())
        for name, content in sorted(files.items()):
            digest.update(f"{name}\0{len(content)}\0".encode("utf-8", "surrogatepass") + content)
        commit = digest.hexdigest()
        repository.commits[commit] = files
        repository.branches[branch] = commit
        return commit

    def downloads(self) -> list[str]:
        """The names of the files whose content was asked for, in order."""
        return [r.path.rpartition("/")[2] for r in self.requests if r.method == "GET" and "/api/" not in r.path]

    def _serve(self, name: str) -> ThreadingHTTPServer:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.answer()

            def do_GET(self) -> None:
                self.answer()

            def answer(self) -> None:
                headers = self.headers
                hub.requests.append(
                    Request(self.command, self.path, headers.get("Range"), headers.get("Authorization"), name)
                )
                try:
                    getattr(hub, f"_{name}")(self)
                except (BrokenPipeError, ConnectionResetError):  # the client went away, as some tests want it to
                    self.close_connection = True

            def log_message(self, format: str, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server

    def _hub(self, request: BaseHTTPRequestHandler) -> None:
        """Model info and resolve, or the error that the hub gives."""
        path = unquote(urlsplit(request.path).path)
        if self.broken is not None:
            return refuse(request, self.broken)
        asked = re.fullmatch(r"/api/models/(?P<id>.+?)(/revision/(?P<revision>.+))?", path) or re.fullmatch(
            r"/(?P<id>[^/]+/[^/]+|[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)", path
        )
        if asked is None:
            return refuse(request, 404)
        found = asked.groupdict()
        if found["id"] in self.moved:
            target = request.path.replace(found["id"], self.moved[found["id"]], 1)
            return reply(request, 307, b"", Location=target)
        repository = self.repositories.get(found["id"])
        known = repository is not None and request.headers.get("Authorization") == f"Bearer {repository.token}"
        if repository is None or (repository.private and not known):
            return refuse(request, 404 if "Authorization" in request.headers else 401, "RepoNotFound")
        revision = found["revision"] or "main"
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            return refuse(request, 404, "RevisionNotFound")
        if "file" not in found:
            return reply(request, 200, json.dumps(model_info(found["id"], repository, commit)).encode())
        if repository.gated and not known:
            return refuse(request, 403 if "Authorization" in request.headers else 401, "GatedRepo")
        content = repository.commits[commit].get(found["file"])
        if content is None:
            return refuse(request, 404, "EntryNotFound", **{"X-Repo-Commit": commit})
        return self._resolve(request, commit, found["file"], content)

    def _resolve(self, request: BaseHTTPRequestHandler, commit: str, name: str, content: bytes) -> None:
        headers = {"X-Repo-Commit": commit}
        if LARGE.fullmatch(name):
            digest = hashlib.sha256(content).hexdigest()
            headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
            return reply(request, 302, b"", Location=f"{self.store}/{digest}/{name}?signature=secret", **headers)
        return self._send(request, name, content, {**headers, "ETag": f'"{git_blob(content)}"'})

    def _store(self, request: BaseHTTPRequestHandler) -> None:
        """A large file by its hash."""
        if self.store_broken is not None:
            return refuse(request, self.store_broken)
        _, digest, name = urlsplit(request.path).path.split("/")
        for repository in self.repositories.values():
            for files in repository.commits.values():
                content = files.get(name)
                if content is not None and hashlib.sha256(content).hexdigest() == digest:
                    return self._send(request, name, content, {"ETag": f'"{digest}"'})
        return refuse(request, 404)

    def _send(self, request: BaseHTTPRequestHandler, name: str, content: bytes, headers: dict[str, str]) -> None:
        """A file or the range of it that was asked for, cut or stalled where a test wants it."""
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        request.send_response(206 if asked else 200)
        if asked:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        for key, value in {**headers, "Content-Length": str(len(content) - start)}.items():
            request.send_header(key, value)
        request.end_headers()
        if request.command == "HEAD":
            return
        limit = self.cut.pop(name, None)
        if limit is None and name in self.stall:
            limit = self.stall[name]
        request.wfile.write(content[start:limit])
        request.wfile.flush()
        if name in self.stall:
            self.stalled.set()
            self.released.wait(60)
        if limit is not None:
            request.close_connection = True


def git_blob(content: bytes) -> str:
    """The hash that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def model_info(model_id: str, repository: Repository, commit: str) -> dict[str, Any]:
    """What the hub says of a model: commit, licence, and every file with size and hash."""
    siblings = []
    for name, content in repository.commits[commit].items():
        sibling: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git_blob(content)}
        if LARGE.fullmatch(name):
            sibling["lfs"] = {
                "sha256": hashlib.sha256(content).hexdigest(),
                "size": len(content),
                "pointerSize": 134,
            }
        siblings.append({**sibling, **repository.lies.get(name, {})})
    card = {} if repository.license is None else {"cardData": {"license": repository.license}}
    return {
        "_id": "0",
        "id": model_id,
        "modelId": model_id,
        "sha": commit,
        "private": repository.private,
        "gated": "manual" if repository.gated else False,
        "tags": ["safetensors"],
        "siblings": siblings,
        **card,
        **repository.info,
    }


def reply(request: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    """A whole answer."""
    request.send_response(status)
    for key, value in {**headers, "Content-Length": str(len(body))}.items():
        request.send_header(key, value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)


def refuse(request: BaseHTTPRequestHandler, status: int, code: str | None = None, **headers: str) -> None:
    """An error as the hub words it."""
    named = {} if code is None else {"X-Error-Code": code, "X-Error-Message": "no"}
    reply(request, status, b'{"error":"no"}', **named, **headers)
