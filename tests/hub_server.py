"""A hub on this machine: the part of the Hugging Face hub's HTTP interface that prompts need.

Small text files go into a commit, safetensors files through Git LFS's batch interface, as on the
hub for repositories of models (without its newer Xet storage).
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import yaml

TOKEN = "hf_of_nobody"


class Repository:
    """The files of every commit, the last one being main."""

    def __init__(self, private):
        self.private = private
        self.commits = {}
        self.commit({".gitattributes": b"*.safetensors filter=lfs\n"})

    @property
    def head(self):
        return list(self.commits)[-1]

    def commit(self, files):
        oid = hashlib.sha1(repr((list(self.commits), sorted(files))).encode()).hexdigest()
        before = self.commits[self.head] if self.commits else {}
        self.commits[oid] = {**before, **files}
        return oid

    def at(self, revision):
        """The commit and its files; None where there is no such revision."""
        oid = self.head if revision == "main" else revision
        return (oid, self.commits[oid]) if oid in self.commits else None


class Hub(ThreadingHTTPServer):
    """Repositories in memory. `requests` has the method and path of every request."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.large, self.requests = {}, {}, []

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """Answers one request; the routes are tried in order."""

    server: Hub

    def log_message(self, *arguments):
        pass

    def answer(self):
        path = urlsplit(self.path).path
        self.server.requests.append((self.command, path))
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        for method, pattern, handle in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in method:
                return handle(self, *found.groups())
        return self.send(404, b"no such page")

    def send(self, status, content, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_json(self, value, status=200, **headers):
        content = json.dumps(value).encode()
        self.send(status, content, Content_Type="application/json", **headers)

    def is_let_in(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repository(self, name, revision="main"):
        """A repository's commit and files; where there is none, the refusal is sent."""
        found = self.server.repositories.get(name)
        if found is None or (found.private and not self.is_let_in()):
            self.send_json({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            return None
        at = found.at(revision)
        if at is None:
            self.send_json({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
        return at

    def create(self):
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        if not self.is_let_in():
            return self.send_json({"error": "Invalid username or password."}, 401)
        if name in self.server.repositories:
            return self.send_json({"url": f"{self.server.endpoint}/{name}"}, 409)
        self.server.repositories[name] = Repository(asked.get("visibility") == "private")
        return self.send_json({"url": f"{self.server.endpoint}/{name}"})

    def validate(self):
        front = json.loads(self.body)["content"].split("---\n")[1]
        return self.send_json({"errors": [], "warnings": [], "front": yaml.safe_load(front)})

    def info(self, name, revision="main"):
        if at := self.repository(name, revision):
            private = self.server.repositories[name].private
            self.send_json({"id": name, "sha": at[0], "tags": [], "private": private})

    def tree(self, name, revision):
        if at := self.repository(name, revision):
            entries = [
                {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
                for path, content in at[1].items()
            ]
            self.send_json(entries)

    def preupload(self, name, revision):
        files = json.loads(self.body)["files"]
        modes = {True: "lfs", False: "regular"}
        self.send_json(
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": modes[file["path"].endswith(".safetensors")],
                        "shouldIgnore": False,
                    }
                    for file in files
                ]
            }
        )

    def batch(self, name):
        objects = json.loads(self.body)["objects"]
        for wanted in objects:
            href = f"{self.server.endpoint}/large/{wanted['oid']}"
            wanted["actions"] = {"upload": {"href": href}}
        self.send_json({"objects": objects})

    def upload(self, oid):
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.server.large[oid] = self.body
        self.send(200, b"")

    def commit(self, name, revision):
        if not self.is_let_in():
            return self.send_json({"error": "Forbidden"}, 403)
        lines = [json.loads(line) for line in self.body.splitlines()]
        files = {}
        for value in (line["value"] for line in lines if line["key"] != "header"):
            large = self.server.large.get(value.get("oid"))
            files[value["path"]] = large or base64.b64decode(value["content"])
        oid = self.server.repositories[name].commit(files)
        url = f"{self.server.endpoint}/{name}/commit/{oid}"
        return self.send_json({"success": True, "commitUrl": url, "commitOid": oid})

    def resolve(self, name, revision, path):
        if at := self.repository(name, revision):
            content = at[1][path]
            etag = f'"{git_oid(content)}"'
            self.send(200, content, X_Repo_Commit=at[0], ETag=etag)


for verb in ("GET", "HEAD", "POST", "PUT"):
    setattr(Handler, f"do_{verb}", Handler.answer)


def git_oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


ID = "([^/]+/[^/]+)"
ROUTES = (
    (("POST",), "/api/repos/create", Handler.create),
    (("POST",), "/api/validate-yaml", Handler.validate),
    (("GET",), f"/api/models/{ID}", Handler.info),
    (("GET",), f"/api/models/{ID}/revision/(.+)", Handler.info),
    (("GET",), f"/api/models/{ID}/tree/([^/]+)", Handler.tree),
    (("POST",), f"/api/models/{ID}/preupload/([^/]+)", Handler.preupload),
    (("POST",), f"/api/models/{ID}/commit/([^/]+)", Handler.commit),
    (("POST",), rf"/{ID}\.git/info/lfs/objects/batch", Handler.batch),
    (("PUT",), "/large/([0-9a-f]{64})", Handler.upload),
    (("GET", "HEAD"), f"/{ID}/resolve/([^/]+)/(.+)", Handler.resolve),
)


@contextlib.contextmanager
def running():
    """A hub without repositories, until the end of the block."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
