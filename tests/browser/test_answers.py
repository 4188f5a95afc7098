"""Asking: streams, reasoning, stop, edit, regenerate, errors and cuts."""

import threading

import pytest
from playwright.sync_api import expect

from mock import Reply
from steps import answer, ask, ask_and_wait, idle, last_question, press, prose, texts


def test_an_answer_streams(page, mock):
    gate = threading.Event()
    mock.replies = [Reply(content=["Hello", ", world."], gate=gate, before=1)]
    ask(page, "Hi there")
    expect(prose(page)).to_have_text("Hello")
    expect(page.locator("#send")).to_have_attribute("aria-label", "Stop (Esc)")
    gate.set()
    expect(prose(page)).to_have_text("Hello, world.")
    expect(idle(page)).to_be_visible()
    expect(last_question(page)).to_contain_text("Hi there")
    expect(answer(page).locator(".figures")).to_contain_text("2 tokens")
    expect(page.locator("#facts")).to_contain_text("22 of 8,192 tokens")
    body = mock.requests[0]
    assert body["stream"] is True and body["model"] == "mock-1"
    assert texts(body) == [("user", "Hi there")]
    assert set(body) == {"model", "messages", "stream"}, "what is not set is left to the server"


def test_the_conversation_so_far_is_sent(page, mock):
    ask_and_wait(page, "One")
    ask_and_wait(page, "Two")
    assert texts(mock.requests[1]) == [("user", "One"), ("assistant", "Hello, world."), ("user", "Two")]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_any_line_end_of_events(page, mock, line_end):
    mock.replies = [Reply(content=["a", "b", "ü 鯨"], line_end=line_end)]
    ask_and_wait(page, "Hi")
    expect(prose(page)).to_have_text("abü 鯨")


def test_reasoning_is_open_while_it_streams_and_folds_after(page, mock):
    thinking, answering = threading.Event(), threading.Event()
    mock.replies = [Reply(reasoning=["Let me ", "think."], content=["Done."], gate=thinking, before=2)]
    ask(page, "Hi")
    fold = answer(page).locator("details.reasoning")
    expect(fold).to_have_attribute("open", "")
    expect(fold).to_contain_text("Let me think.")
    thinking.set()
    expect(prose(page)).to_have_text("Done.")
    expect(fold).not_to_have_attribute("open", "")
    expect(idle(page)).to_be_visible()
    fold.locator("summary").click()
    expect(fold.locator(".reasoning-text")).to_be_visible()
    expect(fold.locator("summary")).to_contain_text("Reasoning")
    ask_and_wait(page, "More")
    assert ("assistant", "Done.") in texts(mock.requests[1]), "reasoning is not sent back"


def test_a_reader_who_folds_reasoning_is_left_alone(page, mock):
    gate = threading.Event()
    mock.replies = [Reply(reasoning=["One ", "two"], content=["Done."], gate=gate, before=1)]
    ask(page, "Hi")
    fold = answer(page).locator("details.reasoning")
    fold.locator("summary").click()
    gate.set()
    expect(idle(page)).to_be_visible()
    expect(fold).not_to_have_attribute("open", "")
    fold.locator("summary").click()
    expect(fold.locator(".reasoning-text")).to_have_text("One two")


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stop_keeps_what_came_and_tells_the_server(page, mock, how):
    mock.replies = [Reply(content=["Half", " never"], gate=threading.Event(), before=1), Reply()]
    ask(page, "Hi")
    expect(prose(page)).to_have_text("Half")
    page.locator("#send").click() if how == "button" else page.keyboard.press("Escape")
    expect(answer(page).locator(".notes")).to_have_text("Stopped.")
    expect(prose(page)).to_have_text("Half")
    assert mock.disconnected.wait(10), "the connection is still open"
    ask_and_wait(page, "Go on")
    assert texts(mock.requests[1]) == [("user", "Hi"), ("assistant", "Half"), ("user", "Go on")]


def test_stop_before_anything_came(page, mock):
    mock.replies = [Reply(gate=threading.Event(), before=0), Reply()]
    ask(page, "Hi")
    expect(answer(page).locator(".waiting")).to_be_visible()
    page.keyboard.press("Escape")
    expect(answer(page).locator(".notes")).to_have_text("Stopped.")
    ask_and_wait(page, "Again")
    assert texts(mock.requests[1]) == [("user", "Hi"), ("user", "Again")], "an empty answer is no answer"


def test_edit_branches_off(page, mock):
    mock.replies = [Reply(content=["First."]), Reply(content=["Second."])]
    ask_and_wait(page, "Tea")
    press(last_question(page), "Edit message")
    field = page.get_by_label("Edit the message")
    expect(field).to_be_focused()
    expect(field).to_have_value("Tea")
    field.fill("Coffee")
    field.press("Enter")
    expect(prose(page)).to_have_text("Second.")
    assert texts(mock.requests[1]) == [("user", "Coffee")]
    expect(last_question(page).locator(".branches")).to_contain_text("2/2")
    press(last_question(page), "Previous version")
    expect(last_question(page)).to_contain_text("Tea")
    expect(prose(page)).to_have_text("First.")


def test_edit_in_the_middle_keeps_the_rest_on_its_branch(page, mock):
    for text in ("One", "Two", "Three"):
        ask_and_wait(page, text)
    press(page.locator(".message.user").nth(1), "Edit message")
    page.get_by_label("Edit the message").fill("Zwei")
    page.keyboard.press("Enter")
    expect(page.locator(".message.user")).to_have_count(2)
    expect(idle(page)).to_be_visible()
    assert texts(mock.requests[3]) == [("user", "One"), ("assistant", "Hello, world."), ("user", "Zwei")]
    press(page.locator(".message.user").nth(1), "Previous version")
    expect(page.locator(".message.user")).to_have_count(3)
    expect(last_question(page)).to_contain_text("Three")


def test_edit_can_be_left(page, mock):
    ask_and_wait(page, "Tea")
    press(last_question(page), "Edit message")
    page.get_by_label("Edit the message").fill("Coffee")
    page.keyboard.press("Escape")
    expect(last_question(page).locator(".bubble")).to_have_text("Tea")
    assert len(mock.requests) == 1


def test_regenerate_keeps_both_answers(page, mock):
    mock.replies = [Reply(content=["First."]), Reply(content=["Second."])]
    ask_and_wait(page, "Hi")
    press(answer(page), "Answer again")
    expect(prose(page)).to_have_text("Second.")
    assert texts(mock.requests[1]) == [("user", "Hi")]
    expect(answer(page).locator(".branches")).to_contain_text("2/2")
    press(answer(page), "Previous answer")
    expect(prose(page)).to_have_text("First.")


def test_a_refusal_shows_the_servers_message_and_can_be_retried(page, mock):
    message = "temperature: 9 is more than 2"
    mock.replies = [Reply(status=400, error=message), Reply(content=["Now it works."])]
    ask(page, "Hi")
    problem = answer(page).get_by_role("alert")
    expect(problem).to_contain_text(message)
    problem.get_by_role("button", name="Try again").click()
    expect(prose(page)).to_have_text("Now it works.")
    expect(problem).to_have_count(0)
    expect(answer(page).locator(".branches")).to_have_count(0)


@pytest.mark.parametrize(
    "reply, words",
    [
        (Reply(content=["Half"], cut="end"), "ended the answer before it was complete"),
        (Reply(content=["Half"], cut="break"), "connection broke"),
        (Reply(content=["Half"], error="the disk failed: shard 3"), "the disk failed: shard 3"),
    ],
    ids=["ends", "breaks", "error event"],
)
def test_a_cut_stream_keeps_what_came(page, mock, reply, words):
    mock.replies = [reply, Reply(content=["Whole."])]
    ask(page, "Hi")
    expect(answer(page).get_by_role("alert")).to_contain_text(words)
    expect(prose(page)).to_have_text("Half")
    page.reload()
    expect(prose(page)).to_have_text("Half")
    answer(page).get_by_role("button", name="Try again").click()
    expect(prose(page)).to_have_text("Whole.")
    expect(answer(page).locator(".branches")).to_contain_text("2/2")


def test_a_server_that_is_gone(page, mock):
    mock.go_away()
    ask(page, "Hi")
    expect(answer(page).get_by_role("alert")).to_contain_text("does not answer")


def test_the_token_limit_is_said(page, mock):
    mock.replies = [Reply(content=["Once upon"], finish="length")]
    ask_and_wait(page, "Hi")
    expect(answer(page).locator(".notes")).to_have_text("Ended at the token limit.")


def test_answers_go_on_while_another_conversation_is_open(page, mock):
    gate = threading.Event()
    mock.replies = [Reply(content=["Slow", " but sure."], gate=gate, before=1), Reply(content=["Quick."])]
    ask(page, "First")
    expect(prose(page)).to_have_text("Slow")
    page.keyboard.press("Control+k")
    ask_and_wait(page, "Second")
    expect(prose(page)).to_have_text("Quick.")
    expect(page.locator("#list .running")).to_have_count(1)
    gate.set()
    expect(page.locator("#list .running")).to_have_count(0)
    page.locator("#list .title", has_text="First").click()
    expect(prose(page)).to_have_text("Slow but sure.")


def test_a_key_is_asked_for_after_a_401_and_kept_for_the_tab(open_page, mock):
    mock.key = "open sesame"
    page = open_page(mock.url)
    dialog = page.locator("#key")
    expect(dialog).to_be_visible()
    page.locator("#key-input").fill("wrong")
    page.keyboard.press("Enter")
    expect(dialog).to_be_visible()
    page.locator("#key-input").fill("open sesame")
    page.keyboard.press("Enter")
    expect(page.locator("#facts")).to_contain_text("mock-1")
    ask_and_wait(page, "Hi")
    expect(prose(page)).to_have_text("Hello, world.")
    assert page.evaluate("JSON.stringify({...localStorage})").find("sesame") < 0
    page.reload()
    expect(page.locator("#facts")).to_contain_text("mock-1")
    expect(dialog).to_be_hidden()


def test_a_key_that_ran_out_repeats_the_question(page, mock):
    mock.key = "new"
    ask(page, "Hi")
    expect(page.locator("#key")).to_be_visible()
    page.locator("#key-input").fill("new")
    page.keyboard.press("Enter")
    expect(prose(page)).to_have_text("Hello, world.")
    expect(page.locator(".message")).to_have_count(2)


def test_no_key_is_asked_for_without_a_401(page):
    expect(page.locator("#key")).to_be_hidden()
