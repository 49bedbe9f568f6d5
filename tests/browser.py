"""A page in a real Chromium without a window, over the DevTools protocol's pipe: nothing to install
but the browser."""

import base64
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

CHROMIUM = next(
  filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None
)

_OPTIONS = (
  *('--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'),
  '--remote-debugging-pipe',
)
_COMPLAINTS = (
  *('Log.entryAdded', 'Runtime.exceptionThrown', 'Runtime.consoleAPICalled'),
  'Network.loadingFailed',
)
_START = """
import fcntl, os, sys
read, write = (fcntl.fcntl(int(n), fcntl.F_DUPFD, 10) for n in sys.argv[1:3])
os.dup2(read, 3), os.dup2(write, 4)  # where the browser looks for them
os.execv(sys.argv[3], sys.argv[3:])
"""


class Page:
  """One tab; `complaints` collects what the browser logs: errors, refusals, failed loads."""

  def __init__(self, requests: Any, answers: Any):
    self._requests, self._answers, self._number, self._session = requests, answers, 0, None
    self.complaints: list[str] = []
    target = self('Target.createTarget', url='about:blank')['targetId']
    self._session = self('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
    for domain in ('Page', 'Log', 'Runtime', 'Network'):
      self(f'{domain}.enable')

  def __call__(self, method: str, **params: Any) -> Any:
    self._number += 1
    message: dict[str, Any] = {'id': self._number, 'method': method, 'params': params}
    if self._session:
      message['sessionId'] = self._session
    self._requests.write(json.dumps(message).encode() + b'\0')
    self._requests.flush()
    return self._until(lambda m: m.get('id') == self._number)['result']

  def _until(self, wanted: Any) -> Any:
    while True:
      text = bytearray()  # screenshots are megabytes
      while not text.endswith(b'\0'):
        text += self._answers.read(1) or b'{"method": "", "end": true}\0'
      message = json.loads(text[:-1])
      assert 'end' not in message, 'the browser ended'
      assert 'error' not in message, message
      method, params = message.get('method'), message.get('params')
      if method in _COMPLAINTS:
        self.complaints.append(f'{method}: {json.dumps(params)}')
      if method == 'Network.requestWillBeSent':
        url = params['request']['url']
        if not url.startswith(('file:', 'data:')):
          self.complaints.append(f'request for {url}')
      if wanted(message):
        return message

  def show(self, path: pathlib.Path, *, width: int, height: int, scheme: str) -> None:
    """Loads a file into a viewport of so many CSS pixels; `scheme` is 'light' or 'dark'."""
    metrics = {'width': width, 'height': height, 'deviceScaleFactor': 1, 'mobile': width < 600}
    self('Emulation.setDeviceMetricsOverride', **metrics)
    media = [{'name': 'prefers-color-scheme', 'value': scheme}]
    self('Emulation.setEmulatedMedia', features=media)
    self('Page.navigate', url=path.resolve().as_uri())
    self._until(lambda m: m.get('method') == 'Page.loadEventFired')

  def evaluate(self, expression: str) -> Any:
    """The value of a JavaScript expression in the page."""
    found = self('Runtime.evaluate', expression=expression, returnByValue=True)
    return found['result'].get('value')

  def screenshot(self, path: pathlib.Path) -> None:
    """The whole page as PNG."""
    found = self('Page.captureScreenshot', captureBeyondViewport=True)
    path.write_bytes(base64.b64decode(found['data']))


@contextlib.contextmanager
def page() -> Iterator[Page]:
  """Starts Chromium and ends it."""
  assert CHROMIUM
  (there, requests), (answers, back) = os.pipe(), os.pipe()
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
    process = subprocess.Popen(
      [
        *(sys.executable, '-c', _START, str(there), str(back), CHROMIUM, *_OPTIONS),
        f'--user-data-dir={profile}',
      ],
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      pass_fds=(there, back),
    )
    os.close(there)
    os.close(back)
    watchdog = threading.Timer(300, process.kill)  # a browser that hangs
    watchdog.start()
    try:
      with open(requests, 'wb') as sent, open(answers, 'rb') as got:
        yield Page(sent, got)
    finally:
      watchdog.cancel()
      process.kill()
      process.wait()
