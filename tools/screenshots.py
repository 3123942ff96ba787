"""Takes the pictures of the chat page in docs/, with the embedded model; needs Chromium.

python tools/screenshots.py
"""

from __future__ import annotations

import io
import json
import shutil
import threading
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from rwkv_engine import RWKV
from rwkv_engine.server.run import Server, listen
from rwkv_engine.server.service import Service, Settings

FOLDER = Path(__file__).resolve().parent.parent / "docs"
COLOURS = 64  # which the page has fewer of, but for the edges of letters
DESKTOP = {"width": 1120, "height": 720}
PHONE = {"width": 390, "height": 720}
# With these the embedded model, which knows fairy tales only, writes a few sentences.
OPTIONS = {
    "temperature": 0.5,
    "top_p": 0.5,
    "presence_penalty": 0.3,
    "frequency_penalty": 0.3,
    "max_tokens": 64,
    "seed": 5,
}
PREAMBLE = "Once upon a time a grandmother told tales to a child who asked for them."


def main() -> None:
    service = Service(Settings(name="tales"))
    service.begin(RWKV.from_pretrained("tales"))
    server = Server(service, drain_seconds=1)
    waiting = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [waiting]})
    thread.start()
    try:
        take(f"http://127.0.0.1:{waiting.getsockname()[1]}/")
    finally:
        server.should_exit = True
        thread.join()


def take(url: str) -> None:
    with sync_playwright() as playwright:
        path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport=DESKTOP, color_scheme="light", reduced_motion="reduce")
        page.add_init_script(f"localStorage['rwkv:/:options'] = {json.dumps(json.dumps(OPTIONS))}")
        page.goto(url)
        page.wait_for_selector("#model:not(:empty)")
        for first, *others in (
            ["What does the wife of the fisherman want?"],
            ["Who lives in the glass mountain?"],
            ["Tell me a tale of the daughter of a king.", "And what did the fox say?"],
        ):
            page.keyboard.press("Alt+N")
            page.click("#show-settings")
            page.fill("#system", PREAMBLE)
            page.keyboard.press("Escape")
            for text in (first, *others):
                send(page, text)
        page.click("#show-settings")
        page.fill("#option-seed", "7")
        page.keyboard.press("Escape")
        page.keyboard.press("Alt+R")
        page.wait_for_selector("#stop", state="hidden")
        page.focus("#message")
        save(page, "page-light")
        page.emulate_media(color_scheme="dark")
        page.click("#show-settings")
        page.evaluate("document.getElementById('settings').scrollTop = 330")
        save(page, "page-settings")
        page.keyboard.press("Escape")
        page.focus("#message")
        page.set_viewport_size(PHONE)
        save(page, "page-phone")
        browser.close()


def send(page: Page, text: str) -> None:
    page.fill("#message", text)
    page.press("#message", "Enter")
    page.wait_for_selector("#stop", state="hidden")


def save(page: Page, name: str) -> None:
    page.mouse.move(0, 0)
    page.wait_for_timeout(300)  # until colours have faded
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    picture.save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
