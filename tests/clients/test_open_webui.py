"""Open WebUI, spoken to as its page speaks to it. A recorder between it and the server writes down what it asks of the server.

Its vendor's slim form is what runs: without what looks after documents, speech and local embeddings, none of which asks the server."""

import http.client
import json
import os
import re
import socket
import subprocess
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from conftest import CLIENTS, KEY
from shared import PICTURE, QUESTION

MODEL = "cachalot-nano"
TASKS = {"title_generation": True, "tags_generation": True, "follow_up_generation": True}
# Without it the model is offered nearly thirty tools of Open WebUI's (`test_tools_are_offered`).
NO_TOOLS = {"function_calling": "legacy"}


class Recorder(ThreadingHTTPServer):
    """Passes requests on to a server. `log` holds objects with method, path, body, status, ignored (a header), error."""

    daemon_threads = True

    def __init__(self, server):
        self.upstream, self.log = server.url.removeprefix("http://"), []
        super().__init__(("127.0.0.1", 0), Pass)
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Pass(BaseHTTPRequestHandler):
    def pass_on(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=600)
        kept = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
        upstream.request(self.command, self.path, body, kept)
        answer = upstream.getresponse()
        entry = {"method": self.command, "path": self.path, "body": json.loads(body or "null")}
        entry |= {"status": answer.status, "ignored": answer.getheader("x-cachalot-ignored"), "error": None}
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        self.end_headers()
        try:
            while piece := answer.read1():
                if answer.status >= 400:
                    entry["error"] = (entry["error"] or "") + piece.decode()
                self.wfile.write(piece)
        except ConnectionError:
            pass  # Whoever asked is gone, and with the connection below the server is told so.
        finally:
            self.server.log.append(entry)
            answer.close()
            upstream.close()

    do_GET = do_POST = pass_on

    def log_message(self, *_):
        pass


class WebUi:
    """A user's session. `recorder` has all that Open WebUI asked of the server."""

    def __init__(self, url, recorder):
        self.recorder = recorder
        self.http = httpx.Client(base_url=url, timeout=600)
        user = self.post("/api/v1/auths/signin", {"email": "", "password": ""})
        self.http.headers["authorization"] = f"Bearer {user['token']}"

    def get(self, path):
        return self.http.get(path).raise_for_status().json()

    def post(self, path, body):
        answer = self.http.post(path, json=body)
        assert answer.is_success, f"{path}: {answer.status_code} {answer.text}"
        return answer.json()

    def send(self, text, chat=None, parent=None, tasks=None, **params):
        """What the page sends when a user does -> the chat's id, the answer's id, the ids of tasks that can be stopped."""
        question, answer, now = str(uuid.uuid4()), str(uuid.uuid4()), int(time.time())
        body = {
            "stream": True,
            "model": MODEL,
            "params": {"temperature": 0, "model_controls": {}, **params},
            "features": {"voice": False, "image_generation": False, "code_interpreter": False, "web_search": False},
            "variables": {"{{USER_NAME}}": "User", "{{USER_LANGUAGE}}": "en-US"},
            "session_id": str(uuid.uuid4()),
            "id": answer,
            "parent_id": parent,
            "user_message": {
                "id": question, "parentId": parent, "childrenIds": [answer], "role": "user",
                "content": text, "timestamp": now, "models": [MODEL],
            },
            "background_tasks": tasks or {},
        }  # fmt: skip
        if chat:
            body["chat_id"] = chat
        if "system" in params:
            body["messages"] = [{"role": "system", "content": params["system"]}]
        sent = self.post("/api/chat/completions", body)
        assert sent["status"] is True, sent
        return sent["chat_id"], answer, sent["task_ids"]

    def message(self, chat, message):
        return self.get(f"/api/v1/chats/{chat}")["chat"]["history"]["messages"][message]

    def answer(self, chat, message):
        """The answer, once it is complete."""
        return until(lambda: (found := self.message(chat, message)).get("done") and found)

    def ask(self, text, **how):
        chat, answer, _ = self.send(text, **how)
        message = self.answer(chat, answer)
        assert "error" not in message, message["error"]
        return chat, answer, message["content"]


def until(true, seconds=120):
    """What `true` returns as soon as that is true."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.2)
    return found


@pytest.fixture(scope="module")
def webui(pytestconfig, nano, tmp_path_factory):
    if not pytestconfig.getoption("--open-webui"):
        pytest.skip("--open-webui was not given")
    recorder, folder = Recorder(nano), tmp_path_factory.mktemp("open-webui")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        # All that a user has to say:
        "OPENAI_API_BASE_URL": f"{recorder.url}/v1",
        "OPENAI_API_KEY": KEY,
        # One user, no other model server, a home of its own:
        "WEBUI_AUTH": "false",
        "WEBUI_SECRET_KEY": "secret",
        "ENABLE_OLLAMA_API": "false",
        "DATA_DIR": str(folder / "data"),
        "STATIC_DIR": str(folder / "static"),
        "HOME": str(folder),
        "PATH": os.environ["PATH"],
        # Slim, silent, and nothing fetched from anywhere:
        "USE_SLIM_DOCKER": "true",
        "OFFLINE_MODE": "true",
        "ANONYMIZED_TELEMETRY": "false",
        "SCARF_NO_ANALYTICS": "true",
        "DO_NOT_TRACK": "1",
    }
    (folder / "data").mkdir()
    program, output = CLIENTS / "open-webui/venv/bin/open-webui", folder / "open-webui.log"
    with output.open("w") as log:
        process = subprocess.Popen(
            [program, "serve", "--host", "127.0.0.1", "--port", str(port)], cwd=folder, env=environment, stdout=log, stderr=log
        )
    url = f"http://127.0.0.1:{port}"

    def up():
        assert process.poll() is None, f"Open WebUI ended with {process.returncode}:\n{output.read_text()}"
        try:
            return httpx.get(f"{url}/health").is_success
        except httpx.TransportError:
            return False

    try:
        until(up, 900)  # It imports for half a minute of a processor's time.
        yield WebUi(url, recorder)
    finally:
        process.terminate()
        process.wait(timeout=60)
        recorder.shutdown()
        (folder / "asked.json").write_text(json.dumps(recorder.log, indent=1))


@pytest.fixture
def asked(webui):
    """asked() -> what Open WebUI has asked of the server in this test, but for the list of models."""
    before = len(webui.recorder.log)
    return lambda: [entry for entry in webui.recorder.log[before:] if not entry["path"].endswith("/models")]


def test_models(webui):
    (model,) = webui.get("/api/models")["data"]
    assert (model["id"], model["name"], model["connection_type"]) == (MODEL, MODEL, "external")
    assert httpx.get(str(webui.http.base_url)).text.startswith("<!doctype html>"), "and there is a page that lists it"


def test_whole_and_streamed(webui, asked):
    """The way of programs that use Open WebUI as a server: nothing is stored, the stream comes through."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "params": {"temperature": 0}}
    whole = webui.post("/api/chat/completions", body)
    assert "Tokyo" in whole["choices"][0]["message"]["content"] and whole["usage"]["completion_tokens"] > 1
    with webui.http.stream("POST", "/api/chat/completions", json={**body, "stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
    assert events.pop() == "[DONE]" and len(events) > 3
    said = [json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events]
    assert "".join(said) == whole["choices"][0]["message"]["content"]
    assert [(entry["status"], entry["ignored"]) for entry in asked()] == [(200, None)] * 2


def test_two_turns(webui, asked):
    chat, first, said = webui.ask(QUESTION, **NO_TOOLS)
    assert "Tokyo" in said
    again, _, said = webui.ask("And of France?", chat=chat, parent=first, **NO_TOOLS)
    assert again == chat and said.strip()
    one, two = (entry["body"]["messages"] for entry in asked())
    assert [message["role"] for message in two] == ["user", "assistant", "user"] and two[:1] == one
    assert "Tokyo" in two[1]["content"]
    assert [(entry["status"], entry["ignored"]) for entry in asked()] == [(200, None)] * 2


def test_title_tags_and_follow_ups(webui, asked):
    chat, answer, said = webui.ask(QUESTION, tasks=TASKS, **NO_TOOLS)
    assert "Tokyo" in said
    # They are asked for beside the answer and after it. The model that ships knows no JSON, so what becomes of their answers is not looked at.
    tasks = until(lambda: len(found := [entry for entry in asked() if "### Task:" in str(entry["body"])]) == 3 and found)
    assert all(entry["status"] == 200 and entry["ignored"] is None for entry in tasks), tasks
    assert {entry["body"]["stream"] for entry in tasks} == {False}
    assert until(lambda: (title := webui.get(f"/api/v1/chats/{chat}")["title"]) != "New Chat" and title)


def test_tools_are_offered(webui, asked):
    """As installed, the page sends the model tools of Open WebUI's own with each message."""
    webui.ask(QUESTION)
    first = asked()[0]
    assert first["body"]["tools"] and all(tool["type"] == "function" for tool in first["body"]["tools"])
    assert all(entry["status"] == 200 and entry["ignored"] is None for entry in asked()), asked()


def test_settings(webui, asked):
    """All that the page lets a user set, except what is refused."""
    carried_out = {
        "seed": 7, "stop": ["\n\n\n"], "temperature": 0.1, "reasoning_effort": "low", "max_tokens": 16, "top_k": 4,
        "top_p": 0.9, "min_p": 0.1, "frequency_penalty": 0.1, "presence_penalty": 0.1,
    }  # fmt: skip
    webui.ask(QUESTION, **carried_out, system="Be brief.", **NO_TOOLS)
    (entry,) = asked()
    assert entry["ignored"] is None and carried_out.items() <= entry["body"].items()
    assert entry["body"]["messages"][0] == {"role": "system", "content": "Be brief."}


def test_refusals_reach_the_user(webui, asked):
    chat, answer, _ = webui.send(QUESTION, logit_bias="17:5", **NO_TOOLS)
    assert "logit_bias" in str(webui.answer(chat, answer)["error"])
    picture = {"type": "image_url", "image_url": {"url": PICTURE}}
    refused = webui.http.post("/api/chat/completions", json={"model": MODEL, "messages": [{"role": "user", "content": [picture]}]})
    assert refused.status_code == 400 and "image" in refused.json()["error"]["message"]
    assert [entry["status"] for entry in asked()] == [400, 400]


def test_stop(webui, nano):
    def metrics():
        return httpx.get(f"{nano.url}/metrics").text

    def cancelled():
        return int(re.search(r"^cachalot_jobs_cancelled_total (\d+)", metrics(), re.MULTILINE)[1])

    before = cancelled()
    # An answer that the model does not end soon.
    endless = {"structured_outputs": {"regex": "[a-z ]{3000,}0"}}
    chat, answer, (task,) = webui.send(QUESTION, custom_params=endless, **NO_TOOLS)
    until(lambda: webui.get(f"/api/tasks/chat/{chat}")["task_ids"] == [task])
    until(lambda: "cachalot_jobs_running 1" in metrics())
    assert webui.post(f"/api/tasks/stop/{task}", {})["status"] is True
    until(lambda: cancelled() == before + 1)
    assert webui.answer(chat, answer)["content"] != ""
    assert webui.ask(QUESTION, **NO_TOOLS)[2], "and the next one is answered"
