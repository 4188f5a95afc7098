"""What the tests do and look for, in the page's terms."""

import time

from playwright.sync_api import expect


def ask(page, text):
    page.locator("#input").fill(text)
    page.locator("#send").click()


def ask_and_wait(page, text):
    ask(page, text)
    expect(idle(page)).to_be_visible()


def idle(page):
    """The button that sends, which is one that stops while an answer is made."""
    return page.locator("#send:not(.stop)")


def answer(page):
    return page.locator(".message.assistant").last


def prose(page):
    return answer(page).locator(".answer > .prose")


def last_question(page):
    return page.locator(".message.user").last


def press(message, label):
    """Presses a button under a message."""
    message.hover()
    message.get_by_role("button", name=label).click()


def overflow(page):
    """By how many pixels the page is wider than the window."""
    return page.evaluate("Math.max(document.documentElement.scrollWidth, document.body.scrollWidth) - innerWidth")


def texts(body):
    """[(role, text)] of a request."""
    return [(message["role"], message["content"]) for message in body["messages"]]


def until(page, expression, seconds=15):
    """Waits for a JavaScript expression to be true. (The driver's own way evaluates text on the page, which the policy forbids.)"""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"never true: {expression}"
        page.wait_for_timeout(50)
