"""A headless Chromium, driven by chromedriver's own protocol (W3C WebDriver, JSON over HTTP).

Selenium would bring an event loop, whose plugin warns each session of Hypothesis.
"""

import base64
import json
import shutil
import subprocess
import time

import requests

from short_runs import free_port

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SWITCHES = ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage")


class Browser:
    """One window. Use it as a context."""

    def __enter__(self):
        port = free_port()
        self._driver = subprocess.Popen(
            [DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._url, self._http = f"http://127.0.0.1:{port}", requests.Session()
        try:
            self._wait()
            chrome = {"binary": CHROMIUM, "args": [f"--{word}" for word in SWITCHES]}
            logs = {"browser": "ALL", "performance": "ALL"}
            wanted = {"goog:chromeOptions": chrome, "goog:loggingPrefs": logs}
            made = self._ask("/session", {"capabilities": {"alwaysMatch": wanted}})
        except BaseException:
            self._driver.kill()
            self._driver.wait()
            raise
        self._url += f"/session/{made['sessionId']}"
        return self

    def __exit__(self, *error):
        self._http.delete(self._url, timeout=60)
        self._http.close()
        self._driver.terminate()
        self._driver.wait()

    def _wait(self):
        deadline = time.monotonic() + 60
        while True:
            try:
                if self._http.get(f"{self._url}/status", timeout=5).json()["value"]["ready"]:
                    return
            except requests.ConnectionError:
                pass
            assert self._driver.poll() is None and time.monotonic() < deadline, "no chromedriver"
            time.sleep(0.1)

    def _ask(self, path, content):
        reply = self._http.post(self._url + path, json=content, timeout=120)
        value = reply.json()["value"]
        assert reply.ok, value
        return value

    def get(self, url):
        """Load a page, to its end."""
        self._ask("/url", {"url": url})

    def devtools(self, command, **parameters):
        """What a command of the DevTools protocol answers."""
        return self._ask("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def script(self, source):
        """What a script in the page returns."""
        return self._ask("/execute/sync", {"script": source, "args": []})

    def log(self, kind):
        """What was logged since the last time, `browser` or `performance`."""
        return self._ask("/se/log", {"type": kind})

    def events(self):
        """The DevTools events since the last time."""
        return [json.loads(each["message"])["message"] for each in self.log("performance")]

    def screenshot(self):
        """What is on the screen, a PNG's bytes."""
        shot = self._http.get(f"{self._url}/screenshot", timeout=120).json()["value"]
        return base64.b64decode(shot)
