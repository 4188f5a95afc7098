"""Conversations in the browser: kept, listed, searched, renamed, deleted, exported, and what happens without storage."""

import json
import threading

from playwright.sync_api import expect

from mock import Reply
from steps import answer, ask, ask_and_wait, idle, last_question, press, prose


def titles(page):
    return page.locator("#list .title")


def test_a_reload_keeps_conversations(page, mock):
    mock.replies = [Reply(reasoning=["Hm."], content=["**Bold** answer."])]
    ask_and_wait(page, "First question\nwith two lines")
    page.keyboard.press("Control+k")
    ask_and_wait(page, "Second question")
    page.reload()
    expect(last_question(page)).to_contain_text("Second question")
    expect(prose(page).locator("strong")).to_have_text("Bold")
    expect(titles(page)).to_have_text(["Second question", "First question"])
    titles(page).nth(1).click()
    expect(last_question(page).locator("p")).to_have_text("First question\nwith two lines")
    answer(page).locator("summary").click()
    expect(answer(page).locator(".reasoning-text")).to_have_text("Hm.")
    page.go_back()
    expect(last_question(page)).to_contain_text("Second question")


def test_a_reload_in_the_middle_keeps_what_came(page, mock):
    mock.replies = [Reply(content=["Half", "never"], gate=threading.Event(), before=1), Reply()]
    ask(page, "Hi")
    expect(prose(page)).to_have_text("Half")
    page.wait_for_timeout(1300)
    page.reload()
    expect(prose(page)).to_have_text("Half")
    expect(answer(page).get_by_role("alert")).to_contain_text("closed before")
    answer(page).get_by_role("button", name="Try again").click()
    expect(prose(page)).to_have_text("Hello, world.")


def test_branches_are_kept(page, mock):
    mock.replies = [Reply(content=["First."]), Reply(content=["Second."])]
    ask_and_wait(page, "Hi")
    press(answer(page), "Answer again")
    expect(prose(page)).to_have_text("Second.")
    expect(idle(page)).to_be_visible()
    press(answer(page), "Previous answer")
    page.reload()
    expect(prose(page)).to_have_text("First.")
    expect(answer(page).locator(".branches")).to_contain_text("1/2")


def test_rename(page):
    ask_and_wait(page, "Hi")
    item = page.locator("#list li").first
    item.hover()
    item.get_by_role("button", name="Rename").click()
    field = page.get_by_label("Title")
    expect(field).to_be_focused()
    field.fill("A better title")
    field.press("Enter")
    expect(titles(page)).to_have_text(["A better title"])
    expect(page.locator("#title")).to_have_text("A better title")
    ask_and_wait(page, "More")
    page.reload()
    expect(titles(page)).to_have_text(["A better title"])
    titles(page).first.focus()
    page.keyboard.press("F2")
    page.keyboard.type("Dropped")
    page.keyboard.press("Escape")
    expect(titles(page)).to_have_text(["A better title"])


def test_delete_asks_first(page):
    ask_and_wait(page, "Hi")
    page.locator("#list li").first.hover()
    page.get_by_role("button", name="Delete Hi").click()
    expect(page.locator("#confirm")).to_contain_text("Hi")
    page.locator("#confirm-cancel").click()
    expect(titles(page)).to_have_count(1)
    titles(page).first.focus()
    page.keyboard.press("Delete")
    page.locator("#confirm").get_by_role("button", name="Delete").click()
    expect(titles(page)).to_have_count(0)
    expect(page.locator("#welcome")).to_be_visible()
    page.reload()
    expect(titles(page)).to_have_count(0)
    left = page.evaluate("""() => new Promise((resolve) => { const open = indexedDB.open('cachalot');
        open.onsuccess = () => { const ask = open.result.transaction('messages').objectStore('messages').count(); ask.onsuccess = () => resolve(ask.result); }; })""")
    assert left == 0, "messages of a deleted conversation are deleted"


def test_search_finds_titles_and_answers(page, mock):
    mock.replies = [Reply(content=["Sperm whales dive deep."]), Reply(content=["Nothing of the kind."])]
    ask_and_wait(page, "Animals")
    page.keyboard.press("Control+k")
    ask_and_wait(page, "Plants")
    page.locator("#search").fill("WHALE")
    expect(titles(page)).to_have_text(["Animals"])
    page.locator("#search").fill("plan")
    expect(titles(page)).to_have_text(["Plants"])
    page.locator("#search").fill("zebra")
    expect(page.locator("#list")).to_have_text("Nothing found.")
    page.locator("#search").fill("")
    expect(titles(page)).to_have_count(2)


def exported(page, name):
    page.locator("#export").click()
    with page.expect_download() as download:
        page.get_by_role("button", name=name).click()
    return download.value.suggested_filename, download.value.path().read_text()


def test_export(page, mock):
    mock.replies = [Reply(reasoning=["Hm."], content=["A *fine* answer."]), Reply(content=["Another."])]
    ask_and_wait(page, "What? <b>")
    press(answer(page), "Answer again")
    expect(prose(page)).to_have_text("Another.")
    press(answer(page), "Previous answer")
    name, text = exported(page, "Export as Markdown")
    assert name == "What-b.md"
    for part in ("# What? <b>", "## User\n\nWhat? <b>", "## Assistant (mock-1)", "Hm.", "A *fine* answer."):
        assert part in text
    assert "Another." not in text, "Markdown is the branch that is shown"
    name, text = exported(page, "Export as JSON")
    value = json.loads(text)
    assert name == "What-b.json"
    assert [message["content"] for message in value["messages"]] == ["What? <b>", "A *fine* answer.", "Another."]


def test_without_storage_the_page_works_and_says_so(open_page, mock, browser):
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.add_init_script("Object.defineProperty(window, 'indexedDB', { get() { throw new Error('denied'); } });"
                            "for (const name of ['localStorage', 'sessionStorage']) Object.defineProperty(window, name, { get() { throw new Error('denied'); } });")
    page = open_page(mock.url, context=context)
    expect(page.locator("#forgetful")).to_be_visible()
    ask_and_wait(page, "One")
    page.keyboard.press("Control+k")
    ask_and_wait(page, "Two")
    titles(page).nth(1).click()
    expect(last_question(page)).to_contain_text("One")
    page.locator("#theme").click()
    page.locator("#search").fill("world")
    expect(titles(page)).to_have_count(2)


def test_two_tabs_see_each_others_conversations(open_page, mock, browser):
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    one = open_page(mock.url, context=context)
    two = open_page(mock.url, context=context)
    expect(one.locator("#facts")).to_contain_text("mock-1")
    ask_and_wait(one, "From the first tab")
    expect(titles(two)).to_have_text(["From the first tab"])
    titles(two).first.focus()
    two.keyboard.press("Delete")
    two.locator("#confirm").get_by_role("button", name="Delete").click()
    expect(titles(one)).to_have_count(0)
    expect(one.locator("#welcome")).to_be_visible()


def test_an_unknown_address_is_said(open_page, mock, browser):
    page = open_page(mock.url)
    page.evaluate("location.hash = 'nothing'")
    expect(page.locator("#notice")).to_contain_text("not kept")
