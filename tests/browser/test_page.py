"""Keyboard, phone, themes, accessibility."""

import threading

import pytest
from playwright.sync_api import expect

from mock import SHOWPIECE, Reply
from steps import answer, ask, ask_and_wait, idle, last_question, overflow, prose, texts, until

WIDE = "A very " + "long" * 60 + " word\n\n```\n" + "wide " * 60 + "\n```\n\n" + "|" + "column with words|" * 12 + "\n" + "|" + "---|" * 12 + "\n" + "|" + "cell of a table|" * 12


def test_enter_sends_and_shift_enter_makes_a_line(page, mock):
    field = page.locator("#input")
    expect(field).to_be_focused()
    page.keyboard.type("One")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("Two")
    height = field.bounding_box()["height"]
    page.keyboard.press("Enter")
    expect(prose(page)).to_have_text("Hello, world.")
    assert texts(mock.requests[0]) == [("user", "One\nTwo")]
    expect(field).to_have_value("")
    expect(field).to_be_focused()
    assert field.bounding_box()["height"] < height, "the field shrinks again"


def test_enter_does_not_send_nothing_or_twice(page, mock):
    mock.replies = [Reply(gate=threading.Event())]
    page.keyboard.press("Enter")
    page.keyboard.type("  ")
    page.keyboard.press("Enter")
    expect(page.locator("#send")).to_be_disabled()
    page.keyboard.type("Hi")
    page.keyboard.press("Enter")
    expect(page.locator("#send")).to_have_class("icon-button stop")
    page.keyboard.type("Next")
    page.keyboard.press("Enter")
    expect(page.locator("#input")).to_have_value("Next")
    assert len(mock.requests) == 1


def test_an_input_method_is_not_interrupted(page, mock):
    page.locator("#input").fill("かな")
    page.evaluate("document.querySelector('#input').dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter', isComposing: true, bubbles: true, cancelable: true }))")
    page.wait_for_timeout(200)
    assert mock.requests == []


def test_up_edits_the_last_message(page, mock):
    ask_and_wait(page, "One")
    ask_and_wait(page, "Two")
    page.locator("#input").focus()
    page.keyboard.press("ArrowUp")
    field = page.get_by_label("Edit the message")
    expect(field).to_be_focused()
    expect(field).to_have_value("Two")
    page.keyboard.type(" or three")
    page.keyboard.press("Enter")
    expect(idle(page)).to_be_visible()
    expect(last_question(page)).to_contain_text("Two or three")
    expect(page.locator("#input")).to_be_focused()


def test_up_in_a_text_only_moves_the_caret(page):
    ask_and_wait(page, "One")
    page.locator("#input").fill("draft")
    page.keyboard.press("ArrowUp")
    expect(page.get_by_label("Edit the message")).to_have_count(0)


def test_control_k_begins_a_conversation(page):
    ask_and_wait(page, "Hi")
    page.locator("#search").focus()
    page.keyboard.press("Control+k")
    expect(page.locator("#welcome")).to_be_visible()
    expect(page.locator("#input")).to_be_focused()
    expect(page.locator("#title")).to_have_text("New conversation")


def test_escape_closes_a_dialog_before_it_stops(page, mock):
    mock.replies = [Reply(content=["Half", "x"], gate=threading.Event(), before=1)]
    ask(page, "Hi")
    expect(prose(page)).to_have_text("Half")
    page.locator("#open-settings").click()
    page.keyboard.press("Escape")
    expect(page.locator("#settings")).to_be_hidden()
    expect(page.locator("#open-settings")).to_be_focused()
    expect(page.locator("#send")).to_have_class("icon-button stop")
    page.keyboard.press("Escape")
    expect(idle(page)).to_be_visible()


def test_everything_can_be_reached_by_tab_and_shows_it(page):
    ask_and_wait(page, "Hi")
    page.evaluate("document.activeElement.blur()")
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        found = page.evaluate("""() => { const at = document.activeElement; if (at === document.body) return null;
            const style = getComputedStyle(at), around = at.closest('#composer, .search');
            const shown = style.outlineStyle !== 'none' || (around && at.matches('input, textarea'));
            return [at.id || at.getAttribute('aria-label') || at.textContent.trim(), shown]; }""")
        if found is None:
            continue
        name, shown = found
        assert shown, f"{name} has the focus and does not show it"
        reached.add(name)
    for name in ("new", "search", "Hi", "Rename Hi", "Delete Hi", "theme", "export", "open-settings", "Copy message", "Edit message", "Copy answer", "Answer again", "input", "attach", "thread"):
        assert name in reached, f"{name} cannot be reached: {sorted(reached)}"


def test_every_control_has_a_name(page, mock):
    mock.replies = [Reply(content=[SHOWPIECE.read_text()], reasoning=["x"])]
    ask_and_wait(page, "Hi")
    nameless = page.evaluate("""() => [...document.querySelectorAll('button, input, select, textarea, a')].filter((node) =>
        !(node.getAttribute('aria-label') || node.textContent.trim() || node.labels?.length || node.hidden)).map((node) => node.outerHTML)""")
    assert nameless == []
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((node) => node.id)")
    assert len(ids) == len(set(ids))


def test_the_end_is_followed_only_while_it_is_in_sight(page, mock):
    gate = threading.Event()
    mock.replies = [Reply(content=["line\n\n" * 80, "more\n\n" * 40, "end"], gate=gate, before=1)]
    ask(page, "Hi")
    below = "(() => { const at = document.querySelector('#thread'); return at.scrollHeight - at.scrollTop - at.clientHeight; })()"
    until(page, f"document.querySelectorAll('.prose p').length >= 80 && {below} < 5")
    page.locator("#thread").hover()
    page.mouse.wheel(0, -600)
    expect(page.locator("#jump")).to_be_visible()
    gate.set()
    expect(idle(page)).to_be_visible()
    assert page.evaluate(below) > 500, "the reader was moved"
    page.locator("#jump").click()
    until(page, f"{below} < 5")
    expect(page.locator("#jump")).to_be_hidden()


@pytest.mark.parametrize("text", [WIDE, SHOWPIECE.read_text()], ids=["wide", "showpiece"])
def test_a_phone_needs_no_sideways_scrolling(phone, mock, text):
    mock.replies = [Reply(content=[text], reasoning=[text])]
    ask_and_wait(phone, "W" * 300 + "\n" + text)
    answer(phone).locator("summary").click()
    assert overflow(phone) == 0
    assert phone.evaluate("(() => { const at = document.querySelector('#thread'); return at.scrollWidth - at.clientWidth; })()") == 0
    phone.locator("#open-settings").click()
    box = phone.locator("#settings").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 360
    assert phone.evaluate("(() => { const at = document.querySelector('#settings'); return at.scrollWidth - at.clientWidth; })()") == 0
    phone.keyboard.press("Escape")
    phone.locator("#menu").click()
    expect(phone.locator("#new")).to_be_in_viewport()
    assert overflow(phone) == 0


def test_the_drawer_of_a_phone(phone):
    expect(phone.locator("#sidebar")).not_to_be_in_viewport()
    ask_and_wait(phone, "One")
    phone.locator("#menu").click()
    expect(phone.locator("#close-sidebar")).to_be_focused()
    until(phone, "document.querySelector('#sidebar').getBoundingClientRect().left === 0")
    assert phone.locator("#sidebar").bounding_box()["width"] < 330, "nothing of the page is left to press"
    expect(phone.locator("#panel-tokens_per_second")).to_have_text("14.3")
    phone.locator("#new").click()
    expect(phone.locator("#sidebar")).not_to_be_in_viewport()
    expect(phone.locator("#welcome")).to_be_visible()
    phone.locator("#menu").click()
    phone.locator("#list .title", has_text="One").click()
    expect(phone.locator("#sidebar")).not_to_be_in_viewport()
    expect(last_question(phone)).to_contain_text("One")
    phone.locator("#menu").click()
    phone.keyboard.press("Escape")
    expect(phone.locator("#sidebar")).not_to_be_in_viewport()
    expect(phone.locator("#menu")).to_be_focused()


def test_targets_on_a_phone_are_large_enough(phone):
    ask_and_wait(phone, "Hi")
    small = phone.evaluate("""() => [...document.querySelectorAll('#top button, #composer button, .actions button')].filter((node) => {
        const box = node.getBoundingClientRect(); return box.width > 0 && (box.width < 36 || box.height < 36); }).map((node) => node.outerHTML)""")
    assert small == []


def test_enter_on_a_phone_makes_a_line(phone, mock):
    phone.locator("#input").focus()
    phone.keyboard.type("One")
    phone.keyboard.press("Enter")
    phone.keyboard.type("Two")
    expect(phone.locator("#input")).to_have_value("One\nTwo")
    assert mock.requests == []


CONTRAST = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
  const rgb = (color) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => { for (let at = node; at; at = at.parentElement) { const color = rgb(getComputedStyle(at).backgroundColor); if (color[3] === 255) return color; } return [255, 255, 255]; };
  const poor = [];
  for (const node of document.querySelectorAll('body *')) {
    if (![...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()) || !node.checkVisibility({ visibilityProperty: true, opacityProperty: true }) || node.closest(':disabled, .unseen, .skip')) continue;
    const [a, b] = [light(rgb(getComputedStyle(node).color)), light(ground(node))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) poor.push([node.textContent.slice(0, 30), ratio.toFixed(2)]);
  }
  return [poor, light(rgb(getComputedStyle(document.body).backgroundColor))];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_systems_scheme_holds_and_text_can_be_read(open_page, mock, scheme):
    mock.replies = [Reply(content=[SHOWPIECE.read_text()], reasoning=["Hm."]), Reply(status=400, error="a problem")]
    page = open_page(mock.url, color_scheme=scheme)
    expect(page.locator("#facts")).to_contain_text("mock-1")
    ask_and_wait(page, "Hi")
    answer(page).locator("summary").click()
    ask_and_wait(page, "And now an error")
    page.mouse.move(0, 0)
    poor, background = page.evaluate(CONTRAST)
    assert poor == []
    assert background > 0.8 if scheme == "light" else background < 0.05


def test_the_switch_decides_against_the_system_and_is_kept(open_page, mock):
    page = open_page(mock.url, color_scheme="light")
    background = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = background()
    page.locator("#theme").click()
    expect(page.locator("#theme")).to_have_attribute("aria-label", "Theme: light")
    assert background() == light
    page.locator("#theme").click()
    dark = background()
    assert dark != light
    page.reload()
    assert background() == dark
    expect(page.locator("#theme")).to_have_attribute("aria-label", "Theme: dark")
    page.locator("#theme").click()
    assert background() == light


def test_reduced_motion_stops_all_motion(open_page, mock):
    mock.replies = [Reply(gate=threading.Event())]
    page = open_page(mock.url, reduced_motion="reduce")
    expect(page.locator("#facts")).to_contain_text("mock-1")
    ask(page, "Hi")
    expect(answer(page).locator(".waiting")).to_be_visible()
    assert page.evaluate("document.getAnimations().length") == 0
