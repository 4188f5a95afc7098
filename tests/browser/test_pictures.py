"""Pictures of the page for a person to look at (--screenshots DIR)."""

import threading

import pytest
from playwright.sync_api import expect

from mock import SHOWPIECE, Reply
from steps import answer, ask, ask_and_wait

SIZES = {"desktop": {"viewport": {"width": 1280, "height": 800}}, "phone": {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}}
THOUGHT = "The reader wants to know how a header is read. Start with the **length**, then ranges; mention `O_DIRECT` and what happens on a bad sector. "


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_pictures(open_page, mock, pictures, size, scheme):
    def shot(name):
        page.wait_for_timeout(300)
        page.screenshot(path=pictures / f"{size}-{scheme}-{name}.png")

    page = open_page(mock.url, color_scheme=scheme, **SIZES[size])
    expect(page.locator("#facts")).to_contain_text("mock-1")
    shot("1-empty")
    gate = threading.Event()
    mock.replies = [
        Reply(content=["A whale of the genus *Physeter*: the sperm whale."]), Reply(content=["Fine."]),
        Reply(content=[SHOWPIECE.read_text()], reasoning=[THOUGHT] * 3), Reply(content=["x"], reasoning=[THOUGHT] * 6, gate=gate, before=6),
        Reply(status=400, error="max_tokens: 500000 is more than the model's 393216"),
    ]
    ask_and_wait(page, "What is a cachalot?")
    page.evaluate("document.querySelector('#new').click()")
    ask_and_wait(page, "Tidy this paragraph, please")
    page.evaluate("document.querySelector('#new').click()")
    ask_and_wait(page, "How does one read a checkpoint?\nPlease be brief, and show some code.")
    shot("2-answer-end")
    page.locator("#thread").evaluate("(at) => at.scrollTo(0, 0)")
    shot("3-answer-top")
    page.locator("#thread").evaluate("(at) => at.scrollTo(0, at.scrollHeight)")
    ask(page, "And when the disk fails?")
    expect(answer(page).locator(".reasoning-text")).to_contain_text("bad sector")
    shot("4-reasoning")
    gate.set()
    expect(page.locator("#send:not(.stop)")).to_be_visible()
    page.locator("#thread").evaluate("(at) => at.scrollTo(0, at.scrollHeight)")
    ask(page, "Once more")
    expect(answer(page).get_by_role("alert")).to_be_visible()
    page.evaluate("document.querySelector('.message.user:last-of-type, .message.user').scrollIntoView()")
    page.locator("#thread").evaluate("(at) => at.scrollTo(0, at.scrollHeight)")
    shot("5-error")
    page.locator("#open-settings").click()
    page.locator("#settings [name=temperature]").fill("7")
    page.get_by_role("button", name="Apply").click()
    shot("6-settings")
    page.keyboard.press("Escape")
    page.locator("#export").click()
    shot("7-export")
    page.keyboard.press("Escape")
    if size == "phone":
        page.locator("#menu").click()
        shot("8-drawer")
