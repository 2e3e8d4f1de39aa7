"""A stand-in for the Hugging Face hub on this machine: the requests that a download makes, and downloads cut off."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer:
    """Serves `files` ({repo: {name: bytes}}) as the hub does; keep it open with `with`.

    `stall_after`: names whose first download stops after that many bytes without ending.
    """

    def __init__(self, files, stall_after=None):
        self.files = files
        self.stall_after = dict(stall_after or {})
        self.requests = []
        """(method, path, range) of every request."""
        self.sent = {}
        """Bytes of each file that went out."""
        self.stalled = threading.Event()
        self._released = threading.Event()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                hub._answer(self, send_body=False)

            def do_GET(self):
                hub._answer(self, send_body=True)

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_):
                pass  # a client that was killed

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._released.set()
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request, send_body):
        self.requests.append((request.command, request.path, request.headers.get("Range")))
        owner, repo, resolve, _revision, *name = request.path.strip("/").split("/")
        repo, name = f"{owner}/{repo}", "/".join(name)
        assert resolve == "resolve", request.path
        if repo not in self.files:
            return self._refuse(request, "RepoNotFound")
        if name not in self.files[repo]:
            return self._refuse(request, "EntryNotFound")
        content = self.files[repo][name]
        start = int((request.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        request.send_response(206 if start else 200)
        request.send_header("X-Repo-Commit", COMMIT)
        request.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        request.send_header("Content-Length", str(len(content) - start))
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        request.end_headers()
        if send_body:
            stop = self.stall_after.pop(name, len(content))
            request.wfile.write(content[start:stop])
            request.wfile.flush()
            self.sent[name] = self.sent.get(name, 0) + max(0, stop - start)
            if stop < len(content):
                self.stalled.set()
                self._released.wait(60)

    def _refuse(self, request, code):
        body = json.dumps({"error": code}).encode()
        request.send_response(404)
        request.send_header("X-Error-Code", code)
        request.send_header("X-Repo-Commit", COMMIT)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)
