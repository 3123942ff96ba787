"""The chat page in Chromium: replies, branches, and what is kept."""

from __future__ import annotations

import json

import pytest
from browser import Page, browser, expect, serving

from rwkv_engine.text.templates import TEMPLATES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tales):
    with serving(tales) as running:
        yield running


@pytest.fixture(scope="module")
def chromium():
    with browser() as running:
        yield running


@pytest.fixture
def context(chromium):
    context = chromium.new_context()
    yield context
    context.close()


@pytest.fixture
def page(context, server):
    page = Page(context, server.url, max_tokens=12, seed=3).open()
    yield page
    assert not page.problems


EMPTY = {"title": "", "system": "", "updated": 1, "turns": [], "chosen": {}}


def stored(page):
    return page.run("async () => (await $('store')).load().conversations")


def test_a_reply_is_streamed_and_stopped_and_continued(page):
    page.set(max_tokens=4000)
    page.send("Tell me of the sea.", wait=False)
    reply = page.find(".reply").last
    expect(reply).to_have_attribute("aria-busy", "true")
    expect(reply.locator(".text")).not_to_be_empty()
    page.tab.keyboard.press("Escape")
    expect(reply.locator(".hint")).to_have_text("Stopped.")
    expect(reply.locator(".stats")).to_contain_text("tok/s")
    expect(page.find("#announcements")).to_contain_text("Reply:")
    expect(page.find("#message")).to_be_focused()
    [before] = stored(page)
    assert before["turns"][1]["end"] == "stopped"
    page.set(max_tokens=5)
    page.press("Continue")
    page.wait()
    [after] = stored(page)
    assert after["turns"][1]["text"].startswith(before["turns"][1]["text"])
    assert after["turns"][1]["stats"]["tokens"] == before["turns"][1]["stats"]["tokens"] + 5
    assert after["turns"][1]["end"] == "length"


def test_replies_are_those_of_the_model(page, tales):
    page.set(temperature=0, max_tokens=10)
    page.send("Tell me of the sea.")
    prompt = TEMPLATES["instruction"].render("Tell me of the sea.")
    first = tales.generate(prompt, 10, temperature=0).lstrip()
    assert stored(page)[0]["turns"][1]["text"] == first
    page.press("Continue")
    page.wait()
    more = tales.generate(prompt + first, 10, temperature=0)
    assert stored(page)[0]["turns"][1]["text"] == first + more
    expect(page.find(".reply .stats")).to_contain_text("20 tokens")


def test_another_reply_stands_beside_the_first(page):
    page.set(seed="")
    page.send("Tell me of the sea.")
    first = page.texts
    page.press("Try again")
    page.wait()
    second = page.texts
    assert len(second) == 2
    expect(page.find(".versions")).to_have_text("2/2")
    page.press("Previous version")
    assert page.texts == first
    expect(page.find(".versions")).to_have_text("1/2")
    page.tab.keyboard.press("Alt+r")
    page.wait()
    expect(page.find(".versions")).to_have_text("3/3")
    page.press("Delete this version")
    assert page.texts == second
    page.press("Undo")
    expect(page.find(".versions")).to_have_text("3/3")


def test_an_edited_message_begins_a_branch(page):
    page.send("Tell me of the sea.")
    page.send("And of the fox?")
    before = page.texts
    page.find(".message").first.get_by_role("button", name="Edit").click()
    area = page.find(".editor textarea")
    expect(area).to_be_focused()
    area.press("Escape")
    expect(page.find(".message").first.get_by_role("button", name="Edit")).to_be_focused()
    page.find(".message").first.get_by_role("button", name="Edit").click()
    area.fill("Tell me of the wood.")
    area.press("Enter")
    expect(page.find(".turn")).to_have_count(2)
    page.wait()
    assert page.texts[0] == "Tell me of the wood."
    page.press("Previous version")
    assert page.texts == before
    expect(page.find(".reply").last.get_by_role("button", name="Continue")).to_be_visible()
    expect(page.find(".reply").first.get_by_role("button", name="Continue")).to_have_count(0)
    page.press("Next version")
    page.send("More.")
    assert len(page.texts) == 4
    page.tab.press("#message", "ArrowUp")
    expect(page.find(".editor textarea")).to_have_value("More.")


def test_a_request_has_the_shown_branch_and_the_options(page):
    bodies = []
    page.tab.on("request", lambda request: request.method == "POST" and bodies.append(request.post_data_json))
    page.press("Settings")
    page.press("Raven", "#settings")
    expect(page.find("#presets [aria-pressed=true]")).to_have_text("Raven")
    page.tab.fill("#stop-strings", "the end\n\\n\\n")
    page.tab.fill("#option-top_k", "7.5")
    expect(page.find("#settings [role=alert]:visible")).to_have_text("Top-k: expected a whole number of at least 0.")
    page.tab.fill("#option-top_k", "7")
    page.tab.fill("#system", "A tale.")
    page.tab.keyboard.press("Escape")
    page.send("One.")
    page.send("Two.")
    page.press("Try again")
    page.wait()
    one, two, again = bodies
    reply = stored(page)[0]["turns"][1]["text"]
    assert one["messages"] == [{"role": "system", "content": "A tale."}, {"role": "user", "content": "One."}]
    assert two["messages"][1:] == [
        {"role": "user", "content": "One."},
        {"role": "assistant", "content": reply},
        {"role": "user", "content": "Two."},
    ]
    assert again == two
    expected = {
        "top_p": 0.5,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.4,
        "top_k": 7,
        "seed": 3,
        "max_tokens": 12,
    }
    assert two | expected | {"stop": ["the end", "\n\n"], "temperature": 1, "stream": True} == two


def test_conversations_survive_a_reload(page):
    page.send("Tell me of the sea.")
    texts = page.texts
    page.tab.fill("#title", "The sea")
    page.tab.press("#title", "Enter")
    page.tab.keyboard.press("Alt+n")
    expect(page.find("#welcome")).to_be_visible()
    page.send("Tell me of the fox.")
    assert page.titles == ["Tell me of the fox.", "The sea"]
    page.reload()
    assert page.titles == ["Tell me of the fox.", "The sea"]
    page.press("The sea", "#sidebar")
    assert page.texts == texts
    page.press("Settings")
    expect(page.find("#option-max_tokens")).to_have_value("12")
    page.press("Close", "#settings")
    page.press("Delete “The sea”")
    assert page.titles == ["Tell me of the fox."]
    page.press("Undo")
    assert page.titles == ["Tell me of the fox.", "The sea"]


def test_tabs_see_what_others_do(page, context, server):
    other = Page(context, server.url).open()
    page.send("Tell me of the sea.")
    expect(other.find("#conversations .title")).to_have_text("Tell me of the sea.")
    other.press("Tell me of the sea.", "#sidebar")
    page.press("Edit")
    page.find(".editor textarea").fill("A draft")
    other.send("And of the fox?")
    expect(page.find(".turn")).to_have_count(4)
    expect(page.find(".editor textarea")).to_have_value("A draft")
    assert not other.problems


def test_export_and_import(page, chromium, server, tmp_path):
    page.send("Tell me of the sea.")
    page.press("Try again")
    page.wait()
    page.tab.evaluate("localStorage.setItem('rwkv:/model/:conversation:x', '{\"id\":')")
    page.reload()
    expect(page.find("#damaged")).to_contain_text("1 saved conversation cannot be read")
    with page.tab.expect_download() as download:
        page.press("Export")
    file = tmp_path / "conversations.json"
    download.value.save_as(file)
    content = json.loads(file.read_text())
    assert content["damaged"] == ['{"id":']

    context = chromium.new_context()
    other = Page(context, server.url).open()
    choose = other.find("#import-file").set_input_files
    choose(file)
    expect(other.find("#notice")).to_contain_text("Imported 1 conversation.")
    assert stored(other) == stored(page) == content["conversations"]
    choose(file)
    expect(other.find("#notice")).to_contain_text("1 is here already.")
    assert stored(other) == content["conversations"]

    file.write_text(json.dumps(content)[:-9])
    choose(file)
    expect(other.find("#notice")).to_contain_text("only a part of the file is left. Nothing was changed.")
    [good] = content["conversations"]
    changed = {**good, "title": "Changed"}
    orphan = {**good, "turns": [{**turn, "parent": "nobody"} for turn in good["turns"]]}
    file.write_text(json.dumps(content | {"conversations": [orphan, 3, changed]}))
    choose(file)
    expect(other.find("#notice")).to_contain_text(
        "Left out: conversation 1: what turn 1 follows is missing; conversation 2"
    )
    kept = {conversation["title"]: conversation for conversation in stored(other)}
    assert kept[""] == good
    assert kept["Changed"]["turns"] == good["turns"]
    assert not other.problems
    context.close()


def test_full_storage_is_told(page):
    page.tab.evaluate("() => { Storage.prototype.setItem = () => { throw new Error('full'); }; }")
    page.send("Tell me of the sea.")
    expect(page.find("#notice")).to_contain_text("storage is full")
    assert len(page.texts) == 2
    file = {"name": "a.json", "mimeType": "application/json"}
    content = {"format": "rwkv_engine conversations", "version": 1, "conversations": [{**EMPTY, "id": "a"}]}
    page.find("#import-file").set_input_files({**file, "buffer": json.dumps(content).encode()})
    expect(page.find("#notice")).to_contain_text("Imported 1 conversation. 1 will be gone when this page is left")


def test_ids_of_a_file_may_have_any_characters(page):
    about = {"end": None, "problem": None, "stats": None}
    turns = [
        {"id": 'a"]', "parent": None, "role": "user", "text": "Tell me of the sea.", **about},
        {"id": "__proto__", "parent": 'a"]', "role": "assistant", "text": "No.", **about},
    ]
    conversations = [{**EMPTY, "id": 'c"]', "turns": turns, "title": "<b>&"}]
    content = json.dumps({"format": "rwkv_engine conversations", "version": 1, "conversations": conversations})
    file = {"name": "a.json", "mimeType": "application/json", "buffer": content.encode()}
    page.find("#import-file").set_input_files(file)
    expect(page.find("#heading")).to_have_text("<b>&")
    page.press("Try again")
    page.wait()
    expect(page.find(".turn.reply .text")).not_to_have_text("No.")
    expect(page.find("#send")).to_be_visible()
    assert not page.problems


def test_a_deleted_conversation_stays_deleted(page):
    page.set(max_tokens=4000)
    page.tab.evaluate("() => { let now = 0; Date.now = () => (now += 2000); }")  # so that each piece is saved
    page.send("Tell me of the sea.", wait=False)
    expect(page.find(".reply .text")).not_to_be_empty()
    page.press("Delete “Tell me of the sea.”")
    page.wait()
    page.set(max_tokens=3)
    page.send("Tell me of the fox.")
    assert page.titles == ["Tell me of the fox."]
    assert len(stored(page)) == 1


def test_a_tree_stays_one_whatever_is_done(page):
    counts = page.run(
        """async () => {
            const { newConversation, add, remove, choose, path, messages } = await $("tree");
            const { checkedConversation } = await $("check");
            const some = (list) => list[Math.floor(Math.random() * list.length)];
            const counts = { longest: 0, removed: 0 };
            for (let round = 0; round < 40; round += 1) {
                const conversation = newConversation();
                for (let step = 0; step < 60; step += 1) {
                    const replies = conversation.turns.filter((turn) => turn.role === "assistant");
                    const parent = Math.random() < 0.2 ? undefined : some(replies);
                    if (Math.random() < 0.2 && conversation.turns.length) {
                        const before = conversation.turns.length;
                        const user = some(conversation.turns.filter((turn) => turn.role === "user"));
                        remove(conversation, user);
                        if (path(conversation).includes(user)) throw new Error("it is still there");
                        counts.removed += before - conversation.turns.length - 1;
                    } else if (Math.random() < 0.3 && conversation.turns.length) {
                        choose(conversation, some(conversation.turns));
                    } else {
                        const message = add(conversation, parent?.id ?? null, "user", String(step));
                        const reply = add(conversation, message.id, "assistant", Math.random() < 0.2 ? "" : "reply");
                        const isShown = path(conversation).includes(reply);
                        if (parent === undefined && !isShown) throw new Error("it is not shown");
                        const said = messages(conversation, reply, false);
                        if (said.some((one, i) => one.role !== ["user", "assistant"][i % 2])) throw new Error("turns");
                        if (said.at(-1).content !== String(step)) throw new Error("it is not the last");
                    }
                    const shown = path(conversation);
                    counts.longest = Math.max(counts.longest, shown.length);
                    if (shown.some((turn, i) => turn.parent !== (shown[i - 1]?.id ?? null))) throw new Error("a gap");
                    checkedConversation(JSON.parse(JSON.stringify(conversation)));
                }
            }
            return counts;
        }"""
    )
    assert counts["longest"] > 4
    assert counts["removed"] > 40
