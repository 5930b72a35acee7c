"""A small stand-in of the hub's HTTP API: one process, repositories in memory."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub:
    """What it was told.

    Attributes:
        branches: (repository, branch) -> path -> bytes.
        private: repositories made so.
        objects: large files by their SHA-256, before a commit names them.
        asked: (method, path, authorization) of each request.
    """

    def __init__(self):
        self.branches, self.private, self.objects, self.asked = {}, set(), {}, []
        self.taken = set()

    def commit(self, repo, branch):
        """The id of a branch's content."""
        files = {name: _oid(data) for name, data in self.branches[repo, branch].items()}
        return hashlib.sha1(json.dumps(files, sort_keys=True).encode()).hexdigest()

    def files(self, repo, revision):
        """Of a branch or a commit; None where there is none."""
        for (name, branch), files in self.branches.items():
            if name == repo and revision in (branch, self.commit(name, branch)):
                return files
        return None


def _oid(data):
    return hashlib.sha256(data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, value, code=200, **headers):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(code)
        for name, text in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def handle_any(self):
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        hub.asked.append((self.command, path, self.headers.get("Authorization")))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for method, pattern, work in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and method == self.command.replace("HEAD", "GET"):
                return work(self, hub, body, *found.groups())
        return self.answer({"error": "not found"}, 404, X_Error_Code="EntryNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def create(self, hub, body):
        asked = json.loads(body)
        repo = f"{asked['organization']}/{asked['name']}"
        if repo in hub.taken:
            return self.answer({"error": "not yours"}, 403)
        known = (repo, "main") in hub.branches
        hub.branches.setdefault((repo, "main"), {".gitattributes": b"x"})
        if asked.get("private") or asked.get("visibility") == "private":
            hub.private.add(repo)
        return self.answer({"url": f"{self.server.url}/{repo}"}, 409 if known else 200)

    def branch(self, hub, body, repo, branch):
        known = (repo, branch) in hub.branches
        hub.branches.setdefault((repo, branch), dict(hub.branches[repo, "main"]))
        return self.answer({}, 409 if known else 200)

    def validate(self, hub, body):
        return self.answer({"errors": [], "warnings": []})

    def preupload(self, hub, body, repo, branch):
        def mode(name):
            return "lfs" if name.endswith(".safetensors") else "regular"

        names = [file["path"] for file in json.loads(body)["files"]]
        files = [{"path": x, "uploadMode": mode(x), "shouldIgnore": False} for x in names]
        return self.answer({"files": files})

    def batch(self, hub, body, repo):
        objects = [
            {**x, "actions": {"upload": {"href": f"{self.server.url}/put/{x['oid']}"}}}
            for x in json.loads(body)["objects"]
        ]
        return self.answer({"transfer": "basic", "objects": objects})

    def put(self, hub, body, oid):
        assert _oid(body) == oid
        hub.objects[oid] = body
        return self.answer({})

    def write(self, hub, body, repo, branch):
        files = hub.branches[repo, branch]
        for line in body.decode().splitlines():
            key, value = (item := json.loads(line))["key"], item["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = hub.objects[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        oid = hub.commit(repo, branch)
        url = f"{self.server.url}/{repo}/commit/{oid}"
        return self.answer({"success": True, "commitOid": oid, "commitUrl": url})

    def info(self, hub, body, repo, branch="main"):
        files = hub.files(repo, branch)
        if files is None:
            return self.answer({"error": "no such repository"}, 404, X_Error_Code="RepoNotFound")
        siblings = [{"rfilename": name} for name in sorted(files)]
        name = next(b for (r, b) in hub.branches if r == repo and hub.files(repo, b) is files)
        return self.answer({"id": repo, "sha": hub.commit(repo, name), "siblings": siblings})

    def tree(self, hub, body, repo, branch):
        files = hub.files(repo, branch).items()
        return self.answer(
            [{"type": "file", "path": x, "size": len(data), "oid": _oid(data)} for x, data in files]
        )

    def resolve(self, hub, body, repo, revision, path):
        files = hub.files(repo, revision) or {}
        if path not in files:
            return self.answer({"error": "no entry"}, 404, X_Error_Code="EntryNotFound")
        headers = {"ETag": f'"{_oid(files[path])}"', "X_Repo_Commit": revision}
        return self.answer(files[path], **headers)


REPO = "([^/]+/[^/]+)"
ROUTES = [
    ("POST", "/api/repos/create", Handler.create),
    ("POST", f"/api/models/{REPO}/branch/(.+)", Handler.branch),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("POST", f"/api/models/{REPO}/preupload/(.+)", Handler.preupload),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", "/put/(.+)", Handler.put),
    ("POST", f"/api/models/{REPO}/commit/(.+)", Handler.write),
    ("GET", f"/api/models/{REPO}/tree/([^/]+)/?", Handler.tree),
    ("GET", f"/api/models/{REPO}/revision/(.+)", Handler.info),
    ("GET", f"/api/models/{REPO}", Handler.info),
    ("GET", f"/{REPO}/resolve/([^/]+)/(.+)", Handler.resolve),
]


@contextmanager
def serving():
    """A hub at an address of this machine; yields it and the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub, server.url = Hub(), f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.hub, server.url
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
