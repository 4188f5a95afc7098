"""The same page against a real `cachalot serve` (--server URL): whatever the model says, the parts fit together."""

import json

import pytest
from playwright.sync_api import expect

from steps import answer, ask, ask_and_wait, idle, press, prose


@pytest.fixture
def page(open_page, request):
    url = request.config.getoption("--server").rstrip("/") + "/"
    page = open_page(url)
    expect(page.locator("#facts")).not_to_be_empty()
    return page


def test_headers_are_strict(page):
    answer = page.request.get(page.url)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_fields_that_the_page_reads(page):
    models = json.loads(page.request.get(page.url + "v1/models").text())["data"]
    assert models and all({"id", "context_length", "input_modalities"} <= set(model) for model in models)
    status = json.loads(page.request.get(page.url + "status").text())
    assert set(status) >= {
        "model", "context", "running", "waiting", "tokens_per_second", "prefill_tokens_per_second", "expert_hit_rate", "disk_bytes_per_second", "prefix_tokens_kept",
    }


def test_an_answer_streams_and_is_kept(page):
    ask_and_wait(page, "What is the capital of Japan?")
    expect(answer(page).get_by_role("alert")).to_have_count(0)
    expect(prose(page)).not_to_be_empty()
    expect(answer(page).locator(".figures")).to_contain_text("tokens")
    text = prose(page).inner_text()
    page.reload()
    expect(prose(page)).to_have_text(text)


def test_settings_make_an_answer_repeatable(page):
    page.locator("#open-settings").click()
    for name, value in {"temperature": "1", "top_p": "1", "seed": "7", "max_tokens": "40"}.items():
        page.locator(f"#settings [name={name}]").fill(value)
    page.get_by_role("button", name="Apply").click()
    ask_and_wait(page, "Tell me something about Norway.")
    first = prose(page).inner_text()
    press(answer(page), "Answer again")
    expect(answer(page).locator(".branches")).to_contain_text("2/2")
    expect(idle(page)).to_be_visible()
    assert prose(page).inner_text() == first


def test_a_refusal_is_shown(page):
    page.evaluate("history.replaceState(null, '', location.pathname)")
    page.locator("#open-settings").click()
    page.locator("#settings [name=max_tokens]").fill("1")
    page.get_by_role("button", name="Apply").click()
    # Longer than any context of this family.
    page.locator("#input").evaluate("(field) => { field.value = 'word '.repeat(1_500_000); field.dispatchEvent(new Event('input')); }")
    page.locator("#send").click()
    expect(answer(page).get_by_role("alert")).not_to_be_empty(timeout=60_000)


def test_the_panel_shows_figures(page):
    expect(page.locator("#panel-problem")).to_be_hidden()
    expect(page.locator("#panel-queue")).to_contain_text("running")
