"""Notebooks in JupyterLab and Chromium, for tests and timings: a server, a page, a witness.

Needs Playwright (`pip install -e '.[browser]'`) and a Chromium of the system; Playwright's own
browser is not downloaded. Nothing of the reader's Jupyter settings leaks in or out.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from specnb.paths import ROOT

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic"]
SETTINGS = {
    # All cells stay in the page, those off the screen, too.
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
}
# Before the kernel is there, "run all" would open a dialog and run nothing.
READY = """async () => { const app = window.jupyterapp; await app.restored;
  const panel = app.shell.currentWidget; await panel.context.ready;
  await panel.sessionContext.ready; await panel.sessionContext.session.kernel.info; }"""
# Not awaited: a run that hangs must end in a time-out of ours.
RUN = """() => { window.__ran = null;
  window.jupyterapp.commands.execute('notebook:run-all-cells')
    .then(value => window.__ran = String(value), error => window.__ran = 'error ' + error); }"""
SHUT = "() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()"


def chromium() -> str | None:
    """The path of the system's Chromium; None where there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


def missing() -> str:
    """What a browser session lacks here, and how to get it; empty where nothing does."""
    try:
        import playwright  # noqa: F401
    except ImportError:
        return "playwright is missing: pip install playwright"
    if chromium() is None:
        return "no Chromium: install the system's package (Debian: apt-get install chromium)"
    return ""


class Lab:
    """JupyterLab on 127.0.0.1 over a copy of some notebooks, with settings of its own."""

    def __init__(self, notebooks: Sequence[Path]):
        self.folder = Path(tempfile.mkdtemp(prefix="specnb-lab-"))
        self.root = self.folder / "work"
        (self.root / "notebooks").mkdir(parents=True)
        for path in notebooks:
            shutil.copy(path, self.root / "notebooks")
        for name in ("specnb", "data"):  # what a notebook looks for in the folders above it
            (self.root / name).symlink_to(ROOT / name)
        env = dict(os.environ, PYDEVD_DISABLE_FILE_VALIDATION="1")
        folders = ("CONFIG", "DATA", "RUNTIME")
        names = [f"JUPYTER_{name}_DIR" for name in folders]
        names += ["JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR"]
        for name in names:
            (self.folder / name).mkdir()
            env[name] = str(self.folder / name)
        env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', '')}"
        for name, value in SETTINGS.items():
            plugin, setting = name.split("/")
            path = self.folder / "JUPYTERLAB_SETTINGS_DIR/@jupyterlab" / plugin
            path.mkdir(parents=True)
            (path / f"{setting}.jupyterlab-settings").write_text(json.dumps(value))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._log = (self.folder / "server.log").open("wb")
        self._server = subprocess.Popen(
            [
                *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
                *("--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0"),
                "--IdentityProvider.token=",  # on this machine, for as long as the test takes
                "--PasswordIdentityProvider.password_required=False",
                f"--ServerApp.root_dir={self.root}",
                "--LabApp.expose_app_in_browser=True",
                "--LabApp.extension_manager=readonly",
                "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
        )
        self._wait()

    def _wait(self, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/api/status", timeout=2).read()
                return
            except OSError:
                if self._server.poll() is not None or time.monotonic() > end:
                    log = (self.folder / "server.log").read_text(errors="replace")
                    self.stop()
                    raise RuntimeError(f"JupyterLab did not start:\n{log}") from None
                time.sleep(0.05)

    def kernel(self, name: str) -> Kernel:
        """A second client of the kernel that runs this notebook."""
        sessions = json.load(urllib.request.urlopen(f"{self.url}/api/sessions", timeout=10))
        ids = [s["kernel"]["id"] for s in sessions if s["path"].endswith(name)]
        return Kernel(self.folder / "JUPYTER_RUNTIME_DIR" / f"kernel-{ids[-1]}.json")

    def stop(self) -> None:
        """Ends the server and all its kernels, and removes the copies."""
        try:
            os.killpg(self._server.pid, signal.SIGTERM)
            self._server.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._server.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Kernel:
    """Asks a running kernel for values: what the page shows may run ahead of it."""

    def __init__(self, connection: Path):
        from jupyter_client import BlockingKernelClient

        self._client = BlockingKernelClient(connection_file=str(connection))
        self._client.load_connection_file()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=30)

    def value(self, expression: str, seconds: float = 30) -> Any:
        """The value of an expression that is a Python literal."""
        reply = self._client.execute(
            "", silent=True, user_expressions={"it": expression}, reply=True, timeout=seconds
        )
        answer = reply["content"]["user_expressions"]["it"]
        if answer["status"] != "ok":
            raise RuntimeError(f"{expression}: {answer.get('evalue', answer)}")
        return ast.literal_eval(answer["data"]["text/plain"])

    def run(self, code: str, seconds: float = 60) -> None:
        """Runs a line of code there."""
        reply = self._client.execute(code, reply=True, timeout=seconds)
        if reply["content"]["status"] != "ok":
            raise RuntimeError(reply["content"].get("evalue"))

    def close(self) -> None:
        self._client.stop_channels()


@contextmanager
def browser() -> Iterator[Any]:
    """Playwright's browser over the system's Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=chromium(), headless=True, args=FLAGS)
        try:
            yield chrome
        finally:
            chrome.close()


class Sheet:
    """One notebook in one page. `foreign` lists requests that would leave the machine, `errors`
    exceptions in the page."""

    def __init__(self, chrome, lab: Lab, name: str, width: int = 1280, height: int = 1100):
        self.lab, self.name = lab, name
        self.foreign: list[str] = []
        self.errors: list[str] = []
        self._context = chrome.new_context(viewport={"width": width, "height": height})
        self.page = self._context.new_page()
        self.page.set_default_timeout(30_000)
        inside = (lab.url, lab.url.replace("http", "ws"), "data:", "blob:")
        self.page.on(
            "request",
            lambda r: None if r.url.startswith(inside) else self.foreign.append(r.url),
        )
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(f"{lab.url}/doc/tree/notebooks/{name}?reset")
        self.page.wait_for_selector(".jp-NotebookPanel .jp-Cell")
        self.page.wait_for_function("() => !!window.jupyterapp")
        self.page.evaluate(READY)

    def run_all(self, seconds: float = 180) -> None:
        """Runs every cell; AssertionError where one fails."""
        self.page.evaluate(RUN)
        self.page.wait_for_function("() => window.__ran !== null", timeout=1000 * seconds)
        said = self.page.evaluate("window.__ran")
        if said != "true":
            wrong = self.page.locator('[data-mime-type="application/vnd.jupyter.stderr"]')
            last = wrong.last.inner_text() if wrong.count() else ""
            raise AssertionError(f"{self.name}: run all gave {said}\n{last[-2000:]}")

    def close(self) -> None:
        """Ends the kernel and closes the page."""
        self.page.evaluate(SHUT)
        self._context.close()
