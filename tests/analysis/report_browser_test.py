"""The report in a browser, driven over DevTools' pipe; no package needed.

CHROMIUM names a browser that is not in PATH; BROWSER_SCREENSHOTS a folder that
keeps what is seen.
"""

import base64
import contextlib
import json
import os
from pathlib import Path
import select
import shutil
import subprocess

import pytest

from synguide_jax.analysis import report
from tests.analysis import made_up_analysis

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FOUND = [os.environ.get("CHROMIUM"), *map(shutil.which, _NAMES)]
_CHROMIUM = next(filter(None, _FOUND), None)
_WIDTH = 390
_PATIENCE = 60  # seconds
_LOOK = """JSON.stringify({
  width: document.scrollingElement.scrollWidth,
  images: [...document.images].map(i => i.complete ? i.naturalWidth : 0),
  figures: [...document.querySelectorAll("figure svg")].map(
    s => s.getBoundingClientRect().width),
  names: [...document.querySelectorAll("tbody th")].map(
    s => s.getBoundingClientRect().width),
  requests: performance.getEntriesByType("resource").map(e => e.name).filter(
    n => !n.startsWith("data:")),
  paper: getComputedStyle(document.body).backgroundColor,
})"""

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(_CHROMIUM is None, reason="no Chromium is installed"),
]


class _Browser:
  """Chromium without a window."""

  def __init__(self, profile):
    # It reads commands from its descriptor 3 and answers on 4.
    read_commands, self._commands = os.pipe()
    self._answers, write_answers = os.pipe()
    flags = [
      "--headless",
      "--no-sandbox",
      "--disable-gpu",
      "--disable-dev-shm-usage",
      "--remote-debugging-pipe",
      f"--user-data-dir={profile}",
    ]
    # Of four new descriptors the last is above 4, so that 3 may be set first.
    script = f'exec 3<&{read_commands} 4>&{write_answers}; exec "$0" "$@"'
    self._process = subprocess.Popen(
      ["bash", "-c", script, _CHROMIUM, *flags],
      pass_fds=(read_commands, write_answers),
      stderr=subprocess.DEVNULL,
    )
    os.close(read_commands)
    os.close(write_answers)
    self._buffer, self._count, self.events = b"", 0, []

  def call(self, method, session=None, **parameters):
    """Sends a command and returns its result; keeps events on the way."""
    self._count += 1
    message = {"id": self._count, "method": method, "params": parameters}
    if session:
      message["sessionId"] = session
    os.write(self._commands, json.dumps(message).encode() + b"\0")
    while (answer := self._read()).get("id") != self._count:
      self.events.append(answer)
    assert "error" not in answer, answer
    return answer["result"]

  def wait(self, method):
    """Reads events up to one of a name."""
    while all(event.get("method") != method for event in self.events):
      self.events.append(self._read())

  def _read(self):
    while b"\0" not in self._buffer:
      ready, _, _ = select.select([self._answers], [], [], _PATIENCE)
      assert ready, "the browser does not answer"
      part = os.read(self._answers, 1 << 16)
      assert part, "the browser has ended"
      self._buffer += part
    message, _, self._buffer = self._buffer.partition(b"\0")
    return json.loads(message)

  def close(self):
    """Ends it; returns the exit status."""
    with contextlib.suppress(AssertionError):
      self.call("Browser.close")
    os.close(self._commands)
    os.close(self._answers)
    return self._process.wait(timeout=20)


def _open(browser, page, colours):
  target = browser.call("Target.createTarget", url="about:blank")["targetId"]
  session = browser.call(
    "Target.attachToTarget", targetId=target, flatten=True
  )["sessionId"]

  def call(method, **parameters):
    return browser.call(method, session, **parameters)

  for domain in ("Log", "Runtime", "Page"):
    call(f"{domain}.enable")
  call(
    "Emulation.setDeviceMetricsOverride",
    width=_WIDTH,
    height=844,
    deviceScaleFactor=2,
    mobile=True,
  )
  scheme = {"name": "prefers-color-scheme", "value": colours}
  call("Emulation.setEmulatedMedia", features=[scheme])
  browser.events.clear()
  call("Page.navigate", url=page.as_uri())
  browser.wait("Page.loadEventFired")
  # What is folded is part of the page too.
  unfold = "document.querySelectorAll('details').forEach(d => d.open = true)"
  call("Runtime.evaluate", expression=unfold)
  seen = call("Runtime.evaluate", expression=_LOOK)["result"]["value"]
  picture = call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
  return json.loads(seen), base64.b64decode(picture)


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_report_fits_a_phone_and_loads_without_errors(tmp_path, colours):
  analysis = made_up_analysis.build(tmp_path)
  page = report.write(analysis, tmp_path)
  browser = _Browser(tmp_path / "profile")
  try:
    seen, picture = _open(browser, page, colours)
  finally:
    status = browser.close()
  if folder := os.environ.get("BROWSER_SCREENSHOTS"):
    Path(folder, f"report_{colours}.png").write_bytes(picture)
  assert status == 0
  wrong = ("Log.entryAdded", "Runtime.consoleAPICalled")
  wrong += ("Runtime.exceptionThrown",)
  assert not [e for e in browser.events if e.get("method") in wrong]
  assert seen["width"] <= _WIDTH
  assert len(seen["images"]) > 40 and min(seen["images"]) > 0
  drawn = [*(tmp_path / "figures").glob("*.svg")]
  assert len(seen["figures"]) == len(drawn) == 14
  assert 300 < min(seen["figures"]) <= max(seen["figures"]) < _WIDTH
  # Names of rows, which stay while the rest is scrolled, leave room for it.
  assert max(seen["names"]) < 0.5 * _WIDTH
  assert seen["requests"] == []
  light = seen["paper"] == "rgb(255, 255, 255)"
  assert light == (colours == "light")
