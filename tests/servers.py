"""Servers on this machine: files with faults, S3, and one that speaks the Hub's endpoints as its client uses them.

In: a folder, or nothing.  Out: addresses, and what was asked of the server.
"""

import base64
import contextlib
import functools
import hashlib
import http.server
import json
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from moto.server import ThreadedMotoServer


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def reply(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))


@contextlib.contextmanager
def _serving(handler: Any) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Files:
    """A folder over http. `sent` counts the bytes of bodies; `fault(handler, path)` may answer instead."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.sent = folder, 0
        self.asked: list[str] = []
        self.secrets: list[str | None] = []
        self.fault: Callable[[Any, str], bool] = lambda handler, path: False

    @contextlib.contextmanager
    def serve(self) -> Iterator[str]:
        files = self

        class Handler(_Handler):
            def do_GET(self) -> None:
                path = self.path.lstrip("/")
                files.asked.append(path)
                files.secrets.append(self.headers.get("Authorization"))
                if files.fault(self, path):
                    return
                found = files.folder / path
                if not found.is_file():
                    self.reply(404)
                    return
                content = found.read_bytes()
                files.sent += len(content)
                self.reply(200, content)

        with _serving(Handler) as address:
            yield address


def endless(handler: Any) -> bool:
    """A body without end, and without a length."""
    handler.close_connection = True
    handler.send_response(200)
    handler.end_headers()
    with contextlib.suppress(OSError):
        while True:
            handler.wfile.write(b"x" * 65536)
    return True


def silent(handler: Any) -> bool:
    """Half a head, then nothing for longer than anybody waits."""
    handler.close_connection = True
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    handler.wfile.flush()
    time.sleep(4)
    return True


def cut(handler: Any, content: bytes) -> bool:
    """Half of a body, then nothing."""
    handler.close_connection = True
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])
    handler.wfile.flush()
    return True


@contextlib.contextmanager
def s3(monkeypatch: Any) -> Iterator[str]:
    """An S3 server (moto) with an empty bucket; the environment says where it is."""
    bucket = f"shelf-{secrets.token_hex(4)}"  # all of moto's servers in a process share their buckets
    import boto3
    from s3fs import S3FileSystem

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()
    try:
        boto3.client("s3").create_bucket(Bucket=bucket)
        yield f"s3://{bucket}"
    finally:
        S3FileSystem.clear_instance_cache()
        server.stop()


class FakeHub:
    """The Hub's endpoints that its client and this package use; repositories with commits, and objects by checksum.

    `cut_after` objects were sent, the server answers 500 to every further one.
    """

    def __init__(self) -> None:
        self.repos: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.objects: dict[str, bytes] = {}
        self.put: list[str] = []
        self.cut_after: int | None = None
        self.token = "hf_test"
        self.tags = ["tipl"]
        self.elsewhere: str | None = None
        """Where large files are, at another server, by their SHA-1."""
        self.lock = threading.Lock()

    def commit(self, repo: str, lines: list[dict[str, Any]]) -> str:
        files = dict(self.repos[repo][-1][1]) if self.repos[repo] else {}
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.objects[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        told = json.dumps([len(self.repos[repo]), *sorted((n, hashlib.sha1(c).hexdigest()) for n, c in files.items())])
        sha = hashlib.sha1(told.encode()).hexdigest()
        self.repos[repo].append((sha, files))
        return sha

    def at(self, repo: str, revision: str | None) -> tuple[str, dict[str, bytes]] | None:
        """A commit and its files; of no revision, or `main`, the last."""
        commits = self.repos[repo]
        if revision in (None, "main"):
            return commits[-1] if commits else ("0" * 40, {})
        return next((each for each in commits if each[0] == revision), None)

    @contextlib.contextmanager
    def serve(self) -> Iterator[str]:
        with _serving(functools.partial(_HubHandler, self)) as address:
            yield address


class _HubHandler(_Handler):
    def __init__(self, hub: FakeHub, *arguments: Any) -> None:
        self.hub = hub
        super().__init__(*arguments)

    def json(self, status: int, facts: Any, **headers: str) -> None:
        self.reply(status, json.dumps(facts).encode(), Content_Type="application/json", **headers)

    def answer(self) -> None:
        path, body = self.path.partition("?")[0], self.body()
        base = f"http://{self.headers['Host']}"
        for method, pattern, do in (
            ("POST", r"/api/validate-yaml", self.valid),
            ("POST", r"/api/repos/create", self.create),
            ("POST", r"/api/(datasets|models)/([\w.-]+/[\w.-]+)/preupload/main", self.preupload),
            ("POST", r"/(datasets/)?([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", self.batch),
            ("PUT", r"/objects/(\w+)", self.put),
            ("POST", r"/api/(datasets|models)/([\w.-]+/[\w.-]+)/commit/main", self.commit),
            ("GET", r"/api/(datasets|models)", self.list),
            ("GET", r"/api/(datasets|models)/([\w.-]+/[\w.-]+)(?:/revision/([\w.-]+))?", self.info),
            ("HEAD|GET", r"/(datasets/)?([\w.-]+/[\w.-]+)/resolve/([\w.-]+)/(.+)", self.resolve),
        ):
            found = re.fullmatch(pattern, path)
            if found and re.fullmatch(method, self.command):
                writes = self.command != "GET" and self.command != "HEAD" and not path.startswith("/objects")
                if writes and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
                    self.json(401, {"error": "Invalid username or password."})
                    return
                with self.hub.lock:
                    do(body, base, *found.groups())
                return
        self.json(404, {"error": f"no {self.command} {path}"})

    do_GET = do_POST = do_PUT = do_HEAD = answer

    def valid(self, body: bytes, *_: Any) -> None:
        assert json.loads(body)["content"].startswith("---\n")
        self.json(200, {"warnings": [], "errors": []})

    def create(self, body: bytes, base: str) -> None:
        asked = json.loads(body)
        kind = f"{asked.get('type') or 'model'}s"
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        there = f"{kind}/{name}" in self.hub.repos
        self.hub.repos.setdefault(f"{kind}/{name}", [])
        self.json(409 if there else 200, {"url": f"{base}/{'datasets/' if kind == 'datasets' else ''}{name}"})

    def preupload(self, body: bytes, base: str, kind: str, name: str) -> None:
        files = json.loads(body)["files"]
        modes = [
            {"path": each["path"], "uploadMode": "regular" if re.search(r"\.(json|md)$", each["path"]) else "lfs",
             "shouldIgnore": False} for each in files
        ]  # fmt: skip
        self.json(200, {"files": modes})

    def batch(self, body: bytes, base: str, *_: Any) -> None:
        asked, objects = json.loads(body)["objects"], []
        for each in asked:
            actions = {} if each["oid"] in self.hub.objects else {
                "actions": {"upload": {"href": f"{base}/objects/{each['oid']}"}}
            }  # fmt: skip
            objects.append({**each, **actions})
        self.json(200, {"transfer": "basic", "objects": objects})

    def put(self, body: bytes, base: str, oid: str) -> None:
        if self.hub.cut_after is not None and len(self.hub.put) >= self.hub.cut_after:
            self.json(400, {"error": "cut off"})
            return
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.objects[oid] = body
        self.hub.put.append(oid)
        self.reply(200)

    def commit(self, body: bytes, base: str, kind: str, name: str) -> None:
        sha = self.hub.commit(f"{kind}/{name}", [json.loads(line) for line in body.splitlines()])
        self.json(200, {"commitUrl": f"{base}/{name}/commit/{sha}", "commitOid": sha, "pullRequestUrl": None})

    def list(self, body: bytes, base: str, kind: str) -> None:
        found = [
            {"id": name.partition("/")[2], "_id": "1", "sha": commits[-1][0], "tags": self.hub.tags, "private": False,
             "downloads": 0, "likes": 0}
            for name, commits in self.hub.repos.items() if name.startswith(f"{kind}/") and commits
        ]  # fmt: skip
        self.json(200, found)

    def info(self, body: bytes, base: str, kind: str, name: str, revision: str | None) -> None:
        repo = f"{kind}/{name}"
        if repo not in self.hub.repos:
            self.json(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        elif (found := self.hub.at(repo, revision)) is None:
            self.json(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        else:
            siblings = [{"rfilename": each} for each in found[1]]
            self.json(200, {"id": name, "_id": "1", "sha": found[0], "siblings": siblings, "private": False,
                            "tags": self.hub.tags, "downloads": 0, "likes": 0})  # fmt: skip

    def resolve(self, body: bytes, base: str, kind: str | None, name: str, revision: str, file: str) -> None:
        repo = f"{'datasets' if kind else 'models'}/{name}"
        found = self.hub.at(repo, revision) if repo in self.hub.repos else None
        if found is None or file not in found[1]:
            self.json(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
            return
        if self.hub.elsewhere and not file.endswith(".json"):
            self.reply(302, Location=f"{self.hub.elsewhere}/{hashlib.sha1(found[1][file]).hexdigest()}")
            return
        etag = f'"{hashlib.sha1(found[1][file]).hexdigest()}"'
        self.reply(200, found[1][file], ETag=etag, X_Repo_Commit=found[0])
