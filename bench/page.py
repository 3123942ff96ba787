"""Measures the chat page of a server on this machine: its size, and how long a browser takes to paint it.

    python -m bench.page [--rounds N]

The size is that of all its files, as they are and compressed. First paint is what Chromium reports
(`first-contentful-paint`), from the beginning of the navigation, in a fresh profile whose cache is empty, and once more
after a reload. *Usable* is when the model's name is shown, so that all scripts have run and the server has answered.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import threading

from playwright.sync_api import Browser, Page, sync_playwright
from rich.console import Console
from rich.table import Table

from rwkv_engine import RWKV
from rwkv_engine.server.page import read_files
from rwkv_engine.server.run import Server, listen
from rwkv_engine.server.service import Service, Settings

PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
NOW = "performance.now()"


def painted(page: Page) -> tuple[float, float]:
    """Milliseconds to the first paint, and until it is usable."""
    page.wait_for_selector("#model:not(:empty)")
    usable = page.evaluate(NOW)
    return page.evaluate(PAINT), usable


def measured(browser: Browser, url: str) -> dict[str, tuple[float, float]]:
    """The times of one fresh profile."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(url)
    first = painted(page)
    page.reload()
    again = painted(page)
    context.close()
    return {"empty cache": first, "again": again}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures the chat page.")
    parser.add_argument("--rounds", type=int, default=20, help="how often it is opened (default 20)")
    rounds = parser.parse_args().rounds
    _, files = read_files()
    plain = sum(len(file.content) for file in files.values())
    packed = sum(len(file.compressed) for file in files.values())

    service = Service(Settings(name="tales"))
    service.begin(RWKV.from_pretrained("tales"))
    server = Server(service, drain_seconds=1)
    waiting = listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{waiting.getsockname()[1]}/"
    thread = threading.Thread(target=server.run, kwargs={"sockets": [waiting]})
    thread.start()
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
            measured(browser, url)  # what only the first page of a browser costs
            times = [measured(browser, url) for _ in range(rounds)]
            version = browser.version
            browser.close()
    finally:
        server.should_exit = True
        thread.join()

    table = Table("", "first paint, ms", "usable, ms")
    for name in times[0]:
        cells = []
        for i in range(2):
            values = [one[name][i] for one in times]
            cells.append(f"{statistics.median(values):.0f} ({min(values):.0f}-{max(values):.0f})")
        table.add_row(name, *cells)
    console = Console()
    console.print(f"{len(files)} files, {plain / 1000:.1f} kB, compressed {packed / 1000:.1f} kB")
    console.print(f"Chromium {version}, medians of {rounds} (lowest and highest)")
    console.print(table)


if __name__ == "__main__":
    main()
