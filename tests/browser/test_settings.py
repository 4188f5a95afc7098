"""System prompt, sampling settings, images and the live panel."""

import base64

import pytest
from playwright.sync_api import expect

from mock import Reply
from steps import answer, ask, ask_and_wait, last_question, prose, texts

PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
DROP = """([target, bytes, type]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], 'dot.png', { type }));
  const event = (name) => new DragEvent(name, { dataTransfer: transfer, bubbles: true, cancelable: true });
  document.querySelector(target).dispatchEvent(event('dragover'));
  document.querySelector(target).dispatchEvent(event('drop'));
}"""
PASTE = """(bytes) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], 'pasted.png', { type: 'image/png' }));
  document.querySelector('#input').dispatchEvent(new ClipboardEvent('paste', { clipboardData: transfer, bubbles: true, cancelable: true }));
}"""

# Conversations as they were kept before these settings were there.
WITHOUT_NEW_SETTINGS = """() => new Promise((resolve) => {
  indexedDB.open('cachalot').onsuccess = ({ target: { result: database } }) => {
    const transaction = database.transaction('conversations', 'readwrite');
    const store = transaction.objectStore('conversations');
    store.getAll().onsuccess = ({ target: { result: records } }) => {
      for (const record of records) {
        for (const name of ['top_k', 'min_p', 'presence_penalty', 'frequency_penalty']) delete record.settings[name];
        store.put(record);
      }
    };
    transaction.oncomplete = () => resolve(database.close());
  };
})"""


def apply(page, fields, keep=False):
    page.locator("#open-settings").click()
    for name, value in fields.items():
        control = page.locator(f"#settings [name={name}]")
        control.select_option(value) if name in ("thinking", "effort") else control.fill(value)
    if keep:
        page.locator("#settings-keep").check()
    page.get_by_role("button", name="Apply").click()


def test_settings_reach_the_request(page, mock):
    apply(page, {
        "system": "Be terse.", "temperature": "0.7", "top_p": "0.9", "top_k": "0", "min_p": "0.05", "presence_penalty": "-0.5",
        "frequency_penalty": "2", "max_tokens": "64", "seed": "42", "thinking": "enabled", "effort": "max",
    })
    expect(page.locator("#settings")).to_be_hidden()
    for told in ("temperature 0.7", "top-k 0", "min-p 0.05", "presence penalty -0.5", "at most 64 tokens"):
        expect(page.locator("#facts")).to_contain_text(told)
    ask_and_wait(page, "Hi")
    body = mock.requests[0]
    assert texts(body) == [("system", "Be terse."), ("user", "Hi")]
    assert {name: value for name, value in body.items() if name not in ("model", "messages", "stream")} == {
        "temperature": 0.7, "top_p": 0.9, "top_k": 0, "min_p": 0.05, "presence_penalty": -0.5, "frequency_penalty": 2,
        "max_tokens": 64, "seed": 42, "thinking": {"type": "enabled"}, "reasoning_effort": "max",
    }


def test_reasoning_off_sends_no_effort(page, mock):
    apply(page, {"effort": "high", "thinking": "disabled"})
    ask_and_wait(page, "Hi")
    assert mock.requests[0]["thinking"] == {"type": "disabled"}
    assert "reasoning_effort" not in mock.requests[0]


@pytest.mark.parametrize(
    "name, value",
    [
        ("temperature", "3"), ("temperature", "hot"), ("top_p", "0"), ("top_k", "-1"), ("top_k", "1e3"), ("top_k", "2147483648"), ("min_p", "1.1"),
        ("presence_penalty", "-2.1"), ("frequency_penalty", "3"), ("max_tokens", "1.5"), ("max_tokens", "0"), ("seed", "-1"), ("seed", "99999999999999999999"),
    ],
)
def test_a_value_out_of_bounds_is_named(page, name, value):
    apply(page, {name: value})
    expect(page.locator(f"#{name}-problem")).not_to_be_empty()
    expect(page.locator(f"#settings [name={name}]")).to_be_focused()
    expect(page.locator("#settings")).to_be_visible()
    page.locator("#settings-cancel").click()
    expect(page.locator("#facts")).to_have_text("mock-1")


def test_settings_belong_to_the_conversation_and_can_become_the_default(page, mock):
    apply(page, {"temperature": "0.1"})
    ask_and_wait(page, "One")
    page.keyboard.press("Control+k")
    ask_and_wait(page, "Two")
    assert mock.requests[0]["temperature"] == 0.1 and "temperature" not in mock.requests[1]
    apply(page, {"temperature": "0.2"}, keep=True)
    page.keyboard.press("Control+k")
    ask_and_wait(page, "Three")
    assert mock.requests[2]["temperature"] == 0.2
    page.reload()
    page.keyboard.press("Control+k")
    ask_and_wait(page, "Four")
    assert mock.requests[3]["temperature"] == 0.2
    page.locator("#list .title", has_text="One").click()
    expect(page.locator("#facts")).to_contain_text("temperature 0.1")


def test_settings_of_an_older_page_are_complete_again(page, mock):
    page.evaluate("localStorage.setItem('cachalot.settings', JSON.stringify({ temperature: '0.3', seed: 7 }))")
    page.reload()
    ask_and_wait(page, "One")
    page.evaluate(WITHOUT_NEW_SETTINGS)
    page.reload()
    ask_and_wait(page, "Two")
    for body in mock.requests:
        assert {name for name in body if name not in ("model", "messages", "stream")} == {"temperature"}
    page.locator("#open-settings").click()
    expect(page.locator("#settings [name=top_k]")).to_have_value("")
    expect(page.locator("#settings [name=temperature]")).to_have_value("0.3")


def test_one_of_several_models_can_be_chosen(open_page, mock):
    mock.models = [{"id": "small"}, {"id": "large", "context_length": 100}]
    page = open_page(mock.url)
    expect(page.locator("#facts")).to_contain_text("small")
    page.locator("#open-settings").click()
    page.locator("#model").select_option("large")
    page.keyboard.press("Escape")
    ask_and_wait(page, "Hi")
    assert mock.requests[0]["model"] == "large"


def test_images_are_refused_with_a_reason_where_the_model_takes_none(page, mock):
    page.evaluate(DROP, ["#thread", list(PNG), "image/png"])
    expect(page.locator("#notice")).to_have_text("This model does not take images.")
    expect(page.locator("#attached")).to_be_hidden()
    expect(page.locator("#attach")).to_have_attribute("aria-disabled", "true")
    page.evaluate("document.querySelector('#notice').hidden = true")
    page.locator("#attach").click(force=True)
    expect(page.locator("#notice")).to_be_visible()
    page.evaluate(PASTE, list(PNG))
    ask_and_wait(page, "Hi")
    assert texts(mock.requests[0]) == [("user", "Hi")]


def test_images_are_dropped_pasted_removed_and_sent(open_page, mock):
    mock.models[0]["input_modalities"] = ["text", "image"]
    page = open_page(mock.url)
    expect(page.locator("#attach")).to_have_attribute("aria-disabled", "false")
    page.evaluate(DROP, ["#thread", list(PNG), "image/png"])
    page.evaluate(PASTE, list(PNG))
    expect(page.locator("#attached img")).to_have_count(2)
    page.get_by_role("button", name="Remove pasted.png").click()
    expect(page.locator("#attached img")).to_have_count(1)
    page.evaluate(DROP, ["#thread", list(b"text"), "text/plain"])
    expect(page.locator("#notice")).to_contain_text("no PNG")
    ask_and_wait(page, "What is this?")
    url = "data:image/png;base64," + base64.b64encode(PNG).decode()
    assert mock.requests[0]["messages"] == [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is this?"}]}
    ]
    page.reload()
    expect(last_question(page).locator("img")).to_have_js_property("naturalWidth", 1)


def test_the_live_panel(page, mock):
    rows = {
        "tokens_per_second": "14.3", "prefill_tokens_per_second": "182", "expert_hit_rate": "87.3 %", "disk_bytes_per_second": "1.23 GB/s",
        "prefix_tokens_kept": "12,345", "prompt_cache": "75.0 %", "queue": "1 running, 2 waiting",
    }
    for name, text in rows.items():
        expect(page.locator(f"#panel-{name}")).to_have_text(text)
    mock.status = {**mock.status, "waiting": 0, "tokens_per_second": None, "expert_hit_rate": None, "prompt_tokens": 0, "cached_prompt_tokens": 0}
    expect(page.locator("#panel-queue")).to_have_text("1 running")
    expect(page.locator("#panel-tokens_per_second")).to_have_text("–")
    expect(page.locator("#panel-prompt_cache")).to_have_text("–")
    mock.status = None
    expect(page.locator("#panel-problem")).to_have_text("This server reports no figures.")


def test_a_folded_panel_asks_nothing(page):
    page.locator("#panel summary").click()
    page.wait_for_timeout(300)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(2500)
    assert asked == []


def test_a_server_that_comes_late_is_found(open_page, mock):
    models, mock.models = mock.models, []
    page = open_page(mock.url)
    expect(page.locator("#offline")).to_have_text("The server lists no model.")
    mock.models = models
    expect(page.locator("#facts")).to_contain_text("mock-1")
    expect(page.locator("#offline")).to_be_hidden()
