"""A small Hugging Face Hub for tests, on 127.0.0.1: models and Spaces, commits with LFS, tags, ranges and errors.

Run as a thread by the fixture ``hub`` and spoken to by the real client, so that pushing and pulling are tested as they
happen, without the internet.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "t" * 34


@dataclass
class Repository:
    """Commits by hash, each a mapping of file names to content; branches and tags point at commits."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False

    def commit(self, changes: dict[str, bytes], branch: str = "main") -> str:
        """The hash of a new commit on a branch."""
        files = self.commits.get(self.refs.get(branch, ""), {}) | changes
        listing = [(name, hashlib.sha1(content).hexdigest()) for name, content in sorted(files.items())]
        oid = hashlib.sha1(repr((len(self.commits), listing)).encode()).hexdigest()
        self.commits[oid], self.refs[branch] = files, oid
        return oid

    def resolve(self, revision: str) -> str | None:
        return self.refs.get(revision) or (revision if revision in self.commits else None)


class HubServer:
    """The server: its repositories can be filled and damaged directly, and every request is kept in `log`."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}  # by kind ("models" or "spaces") and org/name
        self.blobs: dict[str, bytes] = {}  # by the sha256 that clients were told, which damage does not change
        self.log: list[str] = []
        self.failure: int | None = None  # status that every request is answered with
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def create(self, name: str, files: dict[str, bytes] | None = None, kind: str = "models") -> Repository:
        repository = self.repositories[kind, name] = Repository()
        repository.commit(files or {})
        return repository

    def damage(self, name: str, file: str, content: bytes, kind: str = "models") -> None:
        """Other bytes for one file of the main branch, under the old size and hash, as a hostile mirror would send."""
        repository = self.repositories[kind, name]
        old = repository.commits[repository.refs["main"]][file]
        self.blobs[hashlib.sha256(old).hexdigest()] = content

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_lfs(name: str) -> bool:
    return name.endswith((".safetensors", ".ckpt"))


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.hub.log.append(f"{self.command} {self.path}")
        body = self.read_body()
        path = unquote(urlsplit(self.path).path)
        if self.hub.failure:
            self.fail(self.hub.failure, "", "out of order")
            return
        for method, pattern, action in _ROUTES:
            if self.command in method and (match := re.fullmatch(pattern, path)):
                action(self, body, *match.groups())
                return
        self.fail(404, "", f"no route for {self.command} {path}")

    do_HEAD = do_POST = do_PUT = do_GET

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def reply(self, status: int, content: bytes | object, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def fail(self, status: int, code: str, message: str) -> None:
        self.reply(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    def find(self, kind: str, name: str, revision: str) -> tuple[Repository, str] | None:
        """The repository and commit; answers the request itself if there is none."""
        repository = self.hub.repositories.get((kind, name))
        logged_in = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None:
            self.fail(404 if logged_in else 401, "RepoNotFound", "Repository not found")
        elif repository.gated:
            self.fail(403, "GatedRepo", f"Access to {name} is restricted")
        elif (oid := repository.resolve(revision)) is None:
            self.fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return repository, oid
        return None

    def who(self, body: bytes) -> None:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            access = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
            self.reply(200, {"name": "tester", "type": "user", "id": "1", "auth": access, "orgs": []})
        else:
            self.fail(401, "", "Invalid username or password.")

    def create_repository(self, body: bytes) -> None:
        request = json.loads(body)
        name = f"{request.get('organization') or 'tester'}/{request['name']}"
        link = {"url": f"{self.hub.url}/{name}", "name": name, "id": "1"}
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.fail(401, "", "Invalid username or password.")
        elif ("models", name) in self.hub.repositories:
            self.reply(409, link | {"error": "You already created this model repo"})
        else:
            self.hub.create(name)
            self.reply(200, link)

    def validate_card(self, body: bytes) -> None:
        self.reply(200, {"errors": [], "warnings": []})

    def describe(self, body: bytes, kind: str, name: str, revision: str | None) -> None:
        if found := self.find(kind, name, revision or "main"):
            repository, oid = found
            siblings = [{"rfilename": file} for file in repository.commits[oid]]
            self.reply(200, {"id": name, "sha": oid, "private": False, "gated": False, "siblings": siblings})

    def list_tree(self, body: bytes, kind: str, name: str, revision: str) -> None:
        if found := self.find(kind, name, revision):
            repository, oid = found
            entries = []
            for file, content in sorted(repository.commits[oid].items()):
                entry = {"type": "file", "path": file, "size": len(content), "oid": git_hash(content)}
                if is_lfs(file):
                    entry["lfs"] = {
                        "oid": hashlib.sha256(content).hexdigest(),
                        "size": len(content),
                        "pointerSize": 130,
                    }
                entries.append(entry)
            self.reply(200, entries, X_Repo_Commit=oid)

    def prepare_upload(self, body: bytes, kind: str, name: str, revision: str) -> None:
        if self.find(kind, name, revision):
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": p, "uploadMode": "lfs" if is_lfs(p) else "regular", "shouldIgnore": False} for p in paths]
            self.reply(200, {"files": modes})

    def lfs_batch(self, body: bytes, name: str) -> None:
        objects = []
        for item in json.loads(body)["objects"]:
            reply = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.blobs:
                reply["actions"] = {"upload": {"href": f"{self.hub.url}/_lfs/{item['oid']}", "header": {}}}
            objects.append(reply)
        self.reply(200, {"transfer": "basic", "objects": objects}, Content_Type="application/vnd.git-lfs+json")

    def lfs_upload(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            self.fail(400, "", "sha mismatch")
            return
        self.hub.blobs[oid] = body
        self.reply(200, b"")

    def lfs_download(self, body: bytes, oid: str) -> None:
        self.send_file(self.hub.blobs[oid], oid)

    def commit(self, body: bytes, kind: str, name: str, revision: str) -> None:
        if found := self.find(kind, name, revision):
            changes = {}
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    changes[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    changes[value["path"]] = self.hub.blobs[value["oid"]]
            oid = found[0].commit(changes, revision)
            self.reply(200, {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}"})

    def resolve(self, body: bytes, space: str | None, name: str, revision: str, file: str) -> None:
        found = self.find("spaces" if space else "models", name, revision)
        if found is None:
            return
        repository, oid = found
        content = repository.commits[oid].get(file)
        sha256 = hashlib.sha256(content or b"").hexdigest()
        if content is None:
            self.reply(404, b"", X_Error_Code="EntryNotFound", X_Error_Message="Entry not found", X_Repo_Commit=oid)
        elif is_lfs(file):
            self.hub.blobs.setdefault(sha256, content)
            linked = {"X_Linked_Etag": f'"{sha256}"', "X_Linked_Size": str(len(content)), "X_Repo_Commit": oid}
            self.reply(302, b"", Location=f"{self.hub.url.replace('127.0.0.1', 'localhost')}/_lfs/{sha256}", **linked)
        else:
            self.send_file(self.hub.blobs.get(sha256, content), git_hash(content), X_Repo_Commit=oid)

    def send_file(self, data: bytes, etag: str, **headers: str) -> None:
        headers |= {"ETag": f'"{etag}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            self.reply(200, data, **headers)
            return
        first, last = int(wanted[1]), int(wanted[2] or len(data) - 1)
        part = data[first : last + 1]
        self.reply(206, part, Content_Range=f"bytes {first}-{first + len(part) - 1}/{len(data)}", **headers)


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES = [
    ("GET", r"/api/whoami-v2", _Handler.who),
    ("POST", r"/api/repos/create", _Handler.create_repository),
    ("POST", r"/api/validate-yaml", _Handler.validate_card),
    ("GET", rf"/api/(models|spaces)/{_NAME}(?:/revision/([^/]+))?", _Handler.describe),
    ("GET", rf"/api/(models|spaces)/{_NAME}/tree/([^/]+)", _Handler.list_tree),
    ("POST", rf"/api/(models|spaces)/{_NAME}/preupload/([^/]+)", _Handler.prepare_upload),
    ("POST", rf"/api/(models|spaces)/{_NAME}/commit/([^/]+)", _Handler.commit),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/_lfs/(\w+)", _Handler.lfs_upload),
    ("GET HEAD", r"/_lfs/(\w+)", _Handler.lfs_download),
    ("GET HEAD", rf"/(spaces/)?{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
]
