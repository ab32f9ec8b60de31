"""Headless Chromium, driven by the WebDriver protocol of its chromedriver."""

import json
import re
import shutil
import subprocess
import urllib.request
from contextlib import contextmanager

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
MISSING = not (CHROMIUM and DRIVER) and "chromium and chromedriver (Debian: chromium-driver)"

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Browser:
    """A page in a browser of its own."""

    def __init__(self, session: str) -> None:
        self._session = session

    def open(self, path):
        self._call("/url", {"url": path.resolve().as_uri()})

    def run(self, script, *arguments):
        """What a script returns; in it are the ``arguments``."""
        return self._call("/execute/sync", {"script": script, "args": list(arguments)})

    def texts(self, selector):
        """The text of every element that is shown."""
        return self.run(
            "return [...document.querySelectorAll(arguments[0])]"
            ".filter((e) => e.checkVisibility()).map((e) => e.innerText.trim())",
            selector,
        )

    def click(self, selector):
        self.run("document.querySelector(arguments[0]).click()", selector)

    def press(self, *keys):
        """Presses keys one after the other, as a user does."""
        actions = [{"type": way, "value": key} for key in keys for way in ("keyDown", "keyUp")]
        self._call("/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def resize(self, width, height=900, *, dark=False, mobile=False):
        """Sizes of the view in CSS pixels, which no window's least width limits."""
        view = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self.command("Emulation.setDeviceMetricsOverride", view)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", {"features": [scheme]})

    def command(self, name, parameters):
        """A command of the DevTools protocol."""
        return self._call("/goog/cdp/execute", {"cmd": name, "params": parameters})

    def _call(self, path, body):
        return post(f"{self._session}{path}", body)


def post(url, body, method="POST"):
    request = urllib.request.Request(url, json.dumps(body).encode(), method=method)
    with _DIRECT.open(request, timeout=60) as answer:
        return json.load(answer)["value"]


@contextmanager
def browser(folder):
    """A browser whose profile is in a folder."""
    driver = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        ready = next(line for line in driver.stdout if "successfully on port" in line)
        root = f"http://127.0.0.1:{int(re.search(r'port ([0-9]+)', ready)[1])}/session"
        options = {"binary": CHROMIUM, "args": [*_FLAGS, f"--user-data-dir={folder}"]}
        wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
        session = f"{root}/{post(root, wanted)['sessionId']}"
        try:
            yield Browser(session)
        finally:
            post(session, {}, "DELETE")
    finally:
        driver.terminate()
        driver.wait()
        driver.stdout.close()
