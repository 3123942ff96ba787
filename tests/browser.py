"""The chat page in a browser, for tests. Where there is none, modules that import this are skipped with the reason."""

from __future__ import annotations

import json
import re
import shutil
import signal
import threading
from contextlib import contextmanager

import pytest
from served import wait_until

from rwkv_engine.server.run import Server, listen
from rwkv_engine.server.service import Service, Settings
from rwkv_engine.text.templates import TEMPLATES

try:
    from playwright.sync_api import expect, sync_playwright
except ImportError as error:
    pytest.skip(f"{error.name} is not installed, which the extra test has", allow_module_level=True)

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("needs the browser chromium, for example from apt-get install chromium", allow_module_level=True)
PREFIX = "/model/"  # as behind a proxy
expect.set_options(timeout=15_000)


@contextmanager
def serving(model=None, **settings):
    """A server in a thread, behind what a proxy does to addresses; without a model it is loading."""
    # No text of the model contains this template's stop strings, so that replies end at their longest length.
    service = Service(Settings(name="tales", template=TEMPLATES["instruction"], **settings))
    server = Server(service, drain_seconds=1)
    app = server.config.app

    async def proxied(scope, receive, send):
        await app({**scope, "path": scope["path"].replace(PREFIX, "/", 1)}, receive, send)

    server.config.app = proxied
    if model:
        service.begin(model)
    waiting = listen("127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{waiting.getsockname()[1]}{PREFIX}"
    server.service = service
    thread = threading.Thread(target=server.run, kwargs={"sockets": [waiting]})
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield server
    finally:
        server.handle_exit(signal.SIGTERM, None)
        thread.join(20)
    assert not thread.is_alive()


@contextmanager
def browser():
    """Chromium without a window."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield chromium
        chromium.close()


class Page:
    """A tab with the page, and what tests do with it. It notes errors, and requests that leave the server."""

    def __init__(self, context, url, **options):
        """`options` are those of sampling that it begins with."""
        kept = json.dumps(json.dumps(options))
        context.add_init_script(f"localStorage['rwkv:{PREFIX}:options'] ??= {kept}")
        self.tab = context.new_page()
        self.url = url
        self.problems = []
        self.tab.on("pageerror", lambda error: self.problems.append(str(error)))
        self.tab.on("console", self._note)
        self.tab.on("request", self._check)

    def _note(self, message):
        expected = re.search(r"Failed to load resource.*(400|401|429|503|ERR_FAILED|ERR_CONNECTION)", message.text)
        if message.type == "error" and not expected:
            self.problems.append(message.text)

    def _check(self, request):
        if not request.url.startswith((self.url, f"blob:{self.url.split(PREFIX)[0]}")):
            self.problems.append(f"a request for {request.url}")

    def open(self):
        """Loads the page, and waits for the model's name."""
        self.tab.goto(self.url)
        expect(self.tab.locator("#model")).to_have_text("tales")
        return self

    def reload(self):
        """Loads the page again, and waits until its modules have run, which the load event does not wait for."""
        self.tab.reload()
        expect(self.find("#starters button").first).to_be_attached()

    def find(self, selector, **options):
        return self.tab.locator(selector, **options)

    def press(self, label, within="body"):
        """Clicks on the last button with a label."""
        self.find(within).get_by_role("button", name=label, exact=True).last.click()

    def set(self, **options):
        """Sets sampling options."""
        self.press("Settings")
        for name, value in options.items():
            self.tab.fill(f"#option-{name}", str(value))
        self.press("Close", "#settings")

    def send(self, text, wait=True):
        """Sends a message, and waits for the end of the reply."""
        self.tab.fill("#message", text)
        self.tab.press("#message", "Enter")
        expect(self.find("#message")).to_have_value("")
        if wait:
            self.wait()

    def wait(self):
        expect(self.find("#stop")).to_be_hidden()

    @property
    def texts(self):
        """Those of all turns that are shown."""
        return [text.replace("\n\n", "\n") for text in self.find(".turn .text").all_inner_texts()]

    @property
    def titles(self):
        """Those of the conversations in the sidebar."""
        return self.find("#conversations .title").all_text_contents()

    def run(self, code, argument=None):
        """Runs a function with the page's modules: `$(NAME)` in it imports one."""
        folder = self.find("script").evaluate("script => script.src.replace(/[^/]*$/, '')")
        return self.tab.evaluate(code.replace("$(", f"(name => import('{folder}' + name + '.js'))("), argument)
