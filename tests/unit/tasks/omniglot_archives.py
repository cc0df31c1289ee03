"""Small Omniglot archives, and a server for them."""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from metamtl.datasets import omniglot as omniglot_files

pooch = pytest.importorskip("pooch")


Image = pytest.importorskip("PIL.Image")


PREPARED = "omniglot_28_u8.npz"


ARCHIVES = ("images_background.zip", "images_evaluation.zip")


def archive(kind: str, drawings: dict[str, np.ndarray]) -> bytes:
    """A zip laid out as the official ones: `images_<kind>/Alphabet/characterNN/NNNN_DD.png`, ink = 0."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(f"images_{kind}/", "")
        file.writestr(f"__MACOSX/images_{kind}/._Alpha", "what a file manager adds")
        for name, ink in drawings.items():
            png = io.BytesIO()
            Image.fromarray(ink == 0).convert("1").save(png, "PNG")
            file.writestr(f"images_{kind}/{name}.png", png.getvalue())
    return buffer.getvalue()


@pytest.fixture(scope="module")
def zips() -> dict[str, bytes]:
    """Two alphabets of two characters, and one of one, by 20 drawers."""
    draw = np.random.default_rng(0)
    made = {}
    for kind, alphabets in (("background", {"Beta": 2, "Alpha": 2}), ("evaluation", {"Aleph": 1})):
        drawings, source = {}, 0
        for alphabet, characters in alphabets.items():
            for character in range(1, characters + 1):
                source += 1
                for drawer in range(20, 0, -1):  # the order in the archive must not matter
                    name = f"{alphabet}/character{character:02}/{source:04}_{drawer:02}"
                    drawings[name] = draw.random((105, 105)) < 0.1
        made[f"images_{kind}.zip"] = archive(kind, drawings)
    return made


class Server:
    """Serves `pages` (path -> bytes), and counts what is asked for; cut ones break off half-way."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}
        self.cut: set[str] = set()
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.strip("/")
                server.asked.append(name)
                if name not in server.pages:
                    self.send_error(404)
                    return
                page = server.pages[name]
                self.send_response(200)
                self.send_header("Content-Length", str(len(page)))
                self.end_headers()
                self.wfile.write(page[: len(page) // 2] if name in server.cut else page)

            def log_message(self, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join(10)
        self._http.server_close()


@pytest.fixture
def server(
    zips: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    """The small archives on a server of this machine, and `sources.yaml` as it would describe them."""
    scratch = tmp_path_factory.mktemp("zips")
    for name, data in zips.items():
        (scratch / name).write_bytes(data)
    arrays = omniglot_files.prepare([scratch / name for name in ARCHIVES])
    found = Server()
    found.pages.update(zips)
    facts = {
        "archives": {
            name: {
                "url": f"{found.address}/{name}",
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
            for name, data in zips.items()
        },
        "prepared": {
            "file": PREPARED,
            "counts": {"images": 100, "character_names": 5, "alphabet_names": 3},
            "sha256": omniglot_files.checksum(arrays),
        },
    }
    monkeypatch.setattr(omniglot_files, "source", lambda name: facts)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    pooch.get_logger().setLevel("WARNING")
    yield found
    found.close()
