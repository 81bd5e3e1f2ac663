"""Whether a server can be reached is known within a time that is given."""

import contextlib
import http.server
import socket
import threading
import time

import pytest

from synguide_jax.network import is_reachable


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
  monkeypatch.setenv("no_proxy", "*")


@contextlib.contextmanager
def listening():
  with socket.create_server(("127.0.0.1", 0)) as server:
    yield f"http://127.0.0.1:{server.getsockname()[1]}/", server


def test_a_server_that_refuses_the_page_is_there():
  handler = http.server.BaseHTTPRequestHandler  # 501 to everything
  handler.log_message = lambda *args: None
  with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    assert is_reachable(f"http://127.0.0.1:{server.server_port}/")
    server.shutdown()


def test_what_is_not_there_is_known_at_once():
  with listening() as (url, _):
    pass  # Nobody listens there any more.
  started = time.monotonic()
  assert not is_reachable(url)
  assert not is_reachable("https://nowhere.invalid/")
  assert time.monotonic() - started < 5


def test_silence_is_waited_for_only_so_long():
  with listening() as (url, _):
    started = time.monotonic()
    assert not is_reachable(url, seconds=0.5)
    assert 0.4 < time.monotonic() - started < 5
