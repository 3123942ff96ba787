"""The chat page in Chromium: what goes wrong, keyboards, themes, small windows, scripts, and screen readers."""

from __future__ import annotations

import json

import pytest
from browser import Page, browser, expect, serving

from rwkv_engine.server.keys import Keys

pytestmark = pytest.mark.slow
CHAT = "**/v1/chat/completions"
MARKDOWN = """\
# A *small* part
One **bold** word, 2 * 3 * 4, 5*6*7, x*y* z, snake_case_name, and `code **as it is**`.
The same paragraph.

1. first
2. second
   and more
- <img src=x onerror=alert(1)> [link](javascript:alert(1))

```js
if (a < b) alert("**");

# not a heading
```
العربية تُكتب من اليمين
"""


@pytest.fixture(scope="module")
def server(tales):
    with serving(tales, slots=2, most_waiting=0) as running:
        yield running


@pytest.fixture(scope="module")
def chromium():
    with browser() as running:
        yield running


@pytest.fixture
def new(chromium, server):
    """Opens the page in a browser of its own: `new(**options)`."""
    pages = []

    def open(**options):
        pages.append(Page(chromium.new_context(**options), server.url, max_tokens=12, seed=3).open())
        return pages[-1]

    yield open
    for page in pages:
        page.tab.context.close()
        assert not page.problems


def answer(page, *events):
    """Lets the next requests be answered with these events."""
    body = "".join(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n" for event in events)
    page.tab.route(CHAT, lambda route: route.fulfill(body=body, content_type="text/event-stream"))


def piece(text):
    return {"choices": [{"delta": {"content": text}, "finish_reason": None}]}


def test_keys_of_the_server(tales, chromium):
    with serving(tales, keys=Keys(["one", "schlüssel"])) as server:
        page = Page(chromium.new_context(), server.url, max_tokens=3)
        page.tab.goto(server.url)
        field = page.find("#key")
        expect(field).to_be_focused()
        field.fill("two")
        field.press("Enter")
        expect(field).to_have_value("")
        field.fill("schlüssel")
        field.press("Enter")
        expect(page.find("#model")).to_have_text("tales")
        page.send("Hello.")
        assert page.tab.evaluate("[sessionStorage.length, localStorage['rwkv:/model/:key']]") == [1, None]
        page.open()
        expect(page.find("#key-dialog")).to_be_hidden()
        page.tab.evaluate("sessionStorage.clear()")
        page.reload()
        page.find("#remember-key").check()
        field.fill("one")
        page.press("Use this key")
        expect(page.find("#model")).to_have_text("tales")
        page.tab.evaluate("sessionStorage.clear()")
        page.open()
        server.service.settings.keys._clients.clear()  # nobody's key is accepted from now on
        page.send("And now?", wait=False)
        expect(page.find("#key-dialog")).to_be_visible()
        page.press("Cancel")
        expect(page.find(".turn .problem")).to_contain_text("wants an API key")
        assert not page.problems
        page.tab.context.close()


def test_a_model_that_is_being_loaded(tales, chromium):
    with serving() as server:
        page = Page(chromium.new_context(), server.url, max_tokens=12)
        page.tab.goto(server.url)
        expect(page.find("#state")).to_have_text("The model is being loaded.")
        page.send("Hello.", wait=False)
        server.service.begin(tales)
        expect(page.find("#model")).to_have_text("tales")
        expect(page.find(".reply .stats")).to_contain_text("12 tokens")
        expect(page.find("#state")).to_be_hidden()
        assert not page.problems
        page.tab.context.close()


def test_a_server_that_is_busy(new, server):
    page = new()
    with server.service.places.hold(2):
        page.send("Hello.", wait=False)
        expect(page.find("#state")).to_have_text("The server is busy. Trying again in 1 s.")
    page.wait()
    expect(page.find(".reply .stats")).to_contain_text("12 tokens")
    expect(page.find("#state")).to_be_hidden()


def test_a_server_that_is_gone(new):
    page = new()
    page.tab.route(CHAT, lambda route: route.abort())
    page.send("Hello.")
    expect(page.find(".problem:visible")).to_contain_text("The server cannot be reached.")
    page.tab.unroute(CHAT)
    page.press("Try again")
    page.wait()
    expect(page.find(".reply .stats")).to_contain_text("12 tokens")
    expect(page.find(".versions")).to_have_count(0)


def test_a_reply_that_breaks_off_is_kept(new):
    page = new()
    answer(page, piece("Half a"))
    page.send("Hello.")
    expect(page.find(".problem:visible")).to_have_text("The connection was lost in the middle of the reply.")
    assert page.texts[1] == "Half a"
    answer(page, piece(" reply"), {"error": {"message": "the model failed"}})
    page.press("Continue")
    page.wait()
    expect(page.find(".problem:visible")).to_have_text("The server has failed: the model failed.")
    assert page.texts[1] == "Half a reply"


def test_a_value_that_the_server_refuses(new):
    page = new()
    page.set(max_tokens=100_000)
    page.tab.route(CHAT, lambda route: route.fulfill(status=400, json={"error": {"message": "max_tokens: too many"}}))
    page.send("Hello.")
    expect(page.find(".problem:visible")).to_have_text("The server has refused this: max_tokens: too many")


def test_text_of_a_model_stays_text(new):
    page = new()
    answer(page, piece(MARKDOWN), "[DONE]")
    page.send("<b>Hello</b>\n  **you**")
    text = page.find(".reply .text")
    assert page.find(".message .text").text_content() == "<b>Hello</b>\n  **you**"
    assert text.locator("> *").evaluate_all("all => all.map(e => e.tagName)") == ["P", "P", "OL", "UL", "DIV", "P"]
    assert text.locator("img, a, script").count() == 0
    assert text.locator(".heading em").text_content() == "small"
    paragraph = "One bold word, 2 * 3 * 4, 5*6*7, x*y* z, snake_case_name, and code **as it is**.\nThe same paragraph."
    assert text.locator("p").nth(1).text_content() == paragraph
    assert text.locator("p code").text_content() == "code **as it is**"
    assert text.locator("ol li").all_text_contents() == ["first", "second\nand more"]
    assert text.locator("ul li").text_content() == "<img src=x onerror=alert(1)> [link](javascript:alert(1))"
    assert text.locator("pre").text_content() == 'if (a < b) alert("**");\n\n# not a heading'
    assert text.locator("p").last.evaluate("e => getComputedStyle(e).direction") == "rtl"
    page.tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.press("Copy this code")
    assert page.tab.evaluate("navigator.clipboard.readText()") == 'if (a < b) alert("**");\n\n# not a heading'
    page.press("Copy")
    assert page.tab.evaluate("navigator.clipboard.readText()") == MARKDOWN
    with pytest.raises(Exception, match="TrustedHTML"):
        page.tab.evaluate("document.body.innerHTML = '<b>'")
    page.problems.clear()  # the browser has noted that


def test_events_may_arrive_in_any_pieces(new):
    found = new().run(
        """async (text) => {
            const { events } = await $("sse");
            const bytes = new TextEncoder().encode(text);
            const all = [];
            for (const size of [1, 2, 3, 7, 1000]) {
                const stream = new ReadableStream({
                    start(controller) {
                        for (let i = 0; i < bytes.length; i += size) controller.enqueue(bytes.slice(i, i + size));
                        controller.close();
                    },
                });
                all.push(await Array.fromAsync(events(stream)));
            }
            return all;
        }""",
        ": ping\n\ndata: 早上好 🦊\n\ndata: a\r\ndata:b\r\n\r\nevent: x\n\ndata: [DONE]\n\ndata: half",
    )
    assert found == [["早上好 🦊", "a\nb", "[DONE]"]] * 5


def test_keyboard_and_composition(new):
    page = new()
    field = page.find("#message")
    field.fill("one")
    field.press("Shift+Enter")
    field.press_sequentially("two")
    expect(field).to_have_value("one\ntwo")
    for event in ({"isComposing": True}, {"keyCode": 229}):
        field.dispatch_event("keydown", {"key": "Enter", "bubbles": True, "cancelable": True, **event})
    expect(field).to_have_value("one\ntwo")
    expect(page.find(".turn")).to_have_count(0)
    field.dispatch_event("keydown", {"key": "Enter", "bubbles": True, "cancelable": True})
    expect(page.find(".turn")).to_have_count(2)
    page.wait()
    page.tab.keyboard.press("Alt+,")
    expect(page.find("#settings")).to_be_visible()
    page.tab.keyboard.press("Escape")
    expect(page.find("#settings")).to_be_hidden()
    page.tab.keyboard.press("Alt+/")
    expect(page.find("#help")).to_be_visible()
    page.tab.keyboard.press("Escape")
    page.reload()
    page.tab.keyboard.press("Shift+Tab")
    assert page.tab.evaluate("document.activeElement !== document.body")


def test_light_and_dark(new):
    def ground():
        return page.tab.evaluate("getComputedStyle(document.documentElement).backgroundColor")

    page = new(color_scheme="light")
    light = ground()
    page.press("Light or dark")
    dark = ground()
    assert dark != light
    page.reload()
    assert ground() == dark
    page.press("Light or dark")
    assert ground() == light
    page.tab.emulate_media(color_scheme="dark")
    assert ground() == dark, "the page follows the system again"


PHONE = {"viewport": {"width": 360, "height": 640}, "is_mobile": True, "has_touch": True}


def test_a_phone(new):
    page = new(**PHONE)
    page.send("A" * 300 + " and a\n" + "wide word " * 30)
    for selector in ("html", "#scroll"):
        assert page.find(selector).evaluate("element => element.scrollWidth <= element.clientWidth")
    expect(page.find("#sidebar")).to_be_hidden()
    page.send("More. " * 300)
    page.find("#scroll").evaluate("element => element.scrollTop = 0")
    page.press("To the end")
    expect(page.find("#to-end")).to_be_hidden()
    page.find("#scroll").evaluate("element => element.scrollTop = 0")
    expect(page.find("#to-end")).to_be_visible()
    page.press("Conversations")
    expect(page.find("#hide-sidebar")).to_be_focused()
    page.tab.keyboard.press("Escape")
    expect(page.find("#sidebar")).to_be_hidden()
    expect(page.find("#show-sidebar")).to_be_focused()
    page.press("Conversations")
    page.press("New conversation")
    expect(page.find("#welcome")).to_be_visible()
    expect(page.find("#to-end")).to_be_hidden()
    expect(page.find("#sidebar")).to_be_hidden()
    page.press("Settings")
    box = page.find("#settings").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360


@pytest.mark.parametrize("options", [{"color_scheme": "light"}, PHONE | {"color_scheme": "dark"}], ids=str)
def test_accessibility(new, options):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()

    def check(state):
        found = axe.run(page.tab, options={"resultTypes": ["violations"]})
        assert not found.response["violations"], f"{state}:\n{found.generate_report()}"

    page = new(bypass_csp=True, reduced_motion="reduce", **options)
    check("welcome")
    answer(page, piece(MARKDOWN), "[DONE]")
    page.send("Hello.")
    page.press("Try again")
    page.wait()
    answer(page, piece("Half"))
    page.send("Again.")
    check("conversation")
    page.find(".message").first.get_by_role("button", name="Edit").click()
    check("editor")
    page.press("Settings")
    page.tab.fill("#option-top_p", "7")
    check("settings")
    page.press("Change the key")
    check("key")
    page.press("Cancel")
    page.tab.keyboard.press("Alt+/")
    check("help")
    page.press("Close", "#help")
    if "viewport" in options:
        page.press("Conversations")
        check("conversations")
