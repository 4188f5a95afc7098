"""The same page against a real `cachalot serve` (--server URL): whatever the model says, the parts fit together."""

import json

import pytest
from playwright.sync_api import expect

from steps import answer, ask, idle, press, prose

# A real model on a busy machine.
PATIENCE_MS = 120_000


def ask_and_wait(page, text):
    ask(page, text)
    expect(idle(page)).to_be_visible(timeout=PATIENCE_MS)


def status(page):
    return json.loads(page.request.get(page.url.split("#")[0] + "status").text())


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
    assert set(status(page)) >= {
        "model", "context", "running", "waiting", "tokens_per_second", "prefill_tokens_per_second", "expert_hit_rate", "disk_bytes_per_second", "prefix_tokens_kept",
        "prompt_tokens", "cached_prompt_tokens",
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
    sampling = {"temperature": "1", "top_p": "1", "top_k": "50", "min_p": "0.01", "presence_penalty": "-0.5", "frequency_penalty": "0.5"}
    for name, value in {**sampling, "seed": "7", "max_tokens": "40"}.items():
        page.locator(f"#settings [name={name}]").fill(value)
    page.get_by_role("button", name="Apply").click()
    ask_and_wait(page, "Tell me something about Norway.")
    first = prose(page).inner_text()
    press(answer(page), "Answer again")
    expect(answer(page).locator(".branches")).to_contain_text("2/2")
    expect(idle(page)).to_be_visible(timeout=PATIENCE_MS)
    assert prose(page).inner_text() == first


def test_a_refusal_is_shown(page):
    def spoil(route):
        route.continue_(post_data=json.dumps({**route.request.post_data_json, "temperature": 9}))

    page.route("**/v1/chat/completions", spoil)
    ask(page, "Hi")
    expect(answer(page).get_by_role("alert")).to_contain_text("temperature")


def test_stop_ends_the_work_on_the_server(page):
    ask(page, "Count from one to a thousand.")
    page.keyboard.press("Escape")
    expect(idle(page)).to_be_visible()
    for _ in range(100):
        if status(page)["running"] == 0:
            return
        page.wait_for_timeout(100)
    raise AssertionError("the server still computes an answer that nobody reads")


def test_the_panel_shows_figures(page):
    expect(page.locator("#panel-problem")).to_be_hidden()
    expect(page.locator("#panel-queue")).to_contain_text("running")
