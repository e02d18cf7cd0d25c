"""A hub of data sets on a loopback port: what huggingface_hub asks to list a data set and to fetch its files."""

import hashlib
import http.server
import json
import threading
from collections.abc import Mapping
from typing import Any

COMMIT = hashlib.sha1(b"the only commit").hexdigest()


class Hub:
    """Serves `datasets`, NAME -> file -> bytes, until it is left; `asked` are the paths in their order."""

    def __init__(self, datasets: Mapping[str, Mapping[str, bytes]]) -> None:
        self.asked: list[str] = []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.asked.append(self.path)
                for name, files in datasets.items():
                    if self.path.startswith(f"/api/datasets/{name}/revision/") or self.path == f"/api/datasets/{name}":
                        siblings = [{"rfilename": file} for file in files]
                        body = {"_id": "1", "id": name, "sha": COMMIT, "siblings": siblings, "private": False}
                        return self.answer(json.dumps(body).encode(), {"Content-Type": "application/json"})
                    start = f"/datasets/{name}/resolve/main/"
                    if self.path.startswith(start) and self.path.removeprefix(start) in files:
                        data = files[self.path.removeprefix(start)]
                        return self.answer(data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"'})
                return self.answer(b"{}", {"X-Error-Code": "RepoNotFound"}, status=404)

            do_HEAD = do_GET

            def answer(self, body: bytes, headers: Mapping[str, str], *, status: int = 200) -> None:
                self.send_response(status)
                for name, value in {"X-Repo-Commit": COMMIT, "Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                """Silent."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
