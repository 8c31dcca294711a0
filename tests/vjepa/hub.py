"""A stand-in for the Hugging Face Hub on loopback: repositories in memory, and the few requests that a client makes."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlparse

Repositories = dict[str, dict[str, bytes]]


@contextmanager
def serve_hub() -> Iterator[tuple[str, Repositories]]:
    """Its address, and its repositories: name -> path -> content."""
    repositories: Repositories = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(repositories))
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", repositories
    finally:
        server.shutdown()
        server.server_close()


def handler_of(repositories: Repositories) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            words = unquote(urlparse(self.path).path).strip("/").split("/")
            body = self.read()
            if words == ["api", "repos", "create"]:
                asked = json.loads(body)
                name = f"{asked.get('organization') or 'me'}/{asked['name']}"
                repositories.setdefault(name, {})
                self.answer({"url": f"http://{self.headers['Host']}/{name}", "name": name, "id": name})
            elif words == ["api", "validate-yaml"]:
                self.answer({"errors": [], "warnings": []})
            elif words[4:5] == ["preupload"]:
                paths = [file["path"] for file in json.loads(body)["files"]]
                self.answer({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]})
            elif words[4:5] == ["commit"]:
                name = "/".join(words[2:4])
                files = repositories[name]
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                address = f"http://{self.headers['Host']}/{name}/commit/{'1' * 40}"
                self.answer({"commitUrl": address, "commitOid": "1" * 40, "success": True})
            else:
                self.answer({"error": f"no {self.path}"}, 404)

        def do_GET(self) -> None:
            words = unquote(urlparse(self.path).path).strip("/").split("/")
            if words[:2] == ["api", "models"] and "/".join(words[2:4]) in repositories:
                name = "/".join(words[2:4])
                files = repositories[name]
                listed = [
                    {"type": "file", "path": path, "rfilename": path, "size": len(file), "oid": digest(file)}
                    for path, file in files.items()
                ]
                self.answer(listed if "tree" in words else {"id": name, "sha": "1" * 40, "siblings": listed})
            elif words[2:3] == ["resolve"]:
                self.send_file(repositories.get("/".join(words[:2]), {}).get("/".join(words[4:])))
            else:
                self.send_error_of_hub()

        do_HEAD = do_GET  # noqa: N815

        def send_file(self, content: bytes | None) -> None:
            if content is None:
                self.send_error_of_hub()
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{digest(content)}"')
            self.send_header("X-Repo-Commit", "1" * 40)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def send_error_of_hub(self) -> None:
            self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

        def answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def read(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def log_message(self, *arguments: Any) -> None:
            """Silent."""

    return Handler


def digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
