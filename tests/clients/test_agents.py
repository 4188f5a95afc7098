"""Coding agents: a file is read and edited in a task of one shot, by what a script says; and an answer, whatever it is, comes from
the model that ships to the whole prompt that each of them sends."""

import json
import subprocess
import urllib.request

import pytest
from agents import claude, codex, opencode

TASK = "Read greeting.txt and greet a whale instead of the world in it."
DONE = "The greeting is for a whale now."
PATCH = "*** Begin Patch\n*** Update File: greeting.txt\n@@\n-hello world\n+hello whale\n*** End Patch\n"


@pytest.fixture
def project(client):
    """The folder that agents work in: a repository of its own."""
    subprocess.run(["git", "init", "--quiet", client.folder], check=True)
    (client.folder / "greeting.txt").write_text("hello world\n")
    return client.folder


def turns(read, edit, edited):
    """A script: the title that some ask for, a read, an edit once the file's text has come, an end once `edited` has."""
    return [
        {"within": "title generator", "text": "Greeting a whale", "again": True},
        {"after": TASK, "reasoning": "I must see the file.", "text": "I read it first.", "calls": [read]},
        {"after": "hello world", "reasoning": "One word to change.", "calls": [edit]},
        {"after": edited, "reasoning": "That is all.", "text": DONE},
    ]


def call(name, **arguments):
    return {"name": name, "arguments": arguments}


def claude_turns(file):
    edit = call("Edit", file_path=file, old_string="hello world", new_string="hello whale", replace_all=False)
    return turns(call("Read", file_path=file), edit, "has been updated")


def codex_turns(file):
    edit = call("exec_command", cmd=f"apply_patch <<'END'\n{PATCH}END\n", yield_time_ms=5000)
    return turns(call("exec_command", cmd="cat greeting.txt"), edit, "Success")


def codex_patch_turns(file):
    return turns(call("exec_command", cmd="cat greeting.txt"), call("apply_patch", input=PATCH), "Success")


def opencode_turns(file):
    edit = call("edit", filePath=file, oldString="hello world", newString="hello whale")
    return turns(call("read", filePath=file, limit=20), edit, "successfully")


@pytest.mark.parametrize(
    "agent, model, script",
    [
        pytest.param(claude, "playback", claude_turns, id="claude"),
        pytest.param(codex, "playback", codex_turns, id="codex"),
        # Under the name of a model that it knows, Codex offers its tool for patches, whose input is no JSON.
        pytest.param(codex, "gpt-5.5", codex_patch_turns, id="codex-apply-patch"),
        pytest.param(opencode, "playback", opencode_turns, id="opencode"),
    ],
)
def test_a_file_is_read_and_edited(client, playback, project, agent, model, script):
    server = playback(script(str(project / "greeting.txt")), thinks=True)
    answer = agent(client, server.url, model, TASK, edits=True)
    assert (project / "greeting.txt").read_text() == "hello whale\n"
    assert answer.strip() == DONE
    assert [request["turn"] for request in server.requests() if request["turn"] != 0] == [1, 2, 3]
    read, edit, end = (server.turn(index) for index in (1, 2, 3))
    assert read["prompt_tokens"] > 10_000
    # What was said comes back token for token, so that a model need not see it again.
    assert edit["known_tokens"] >= read["prompt_tokens"] + read["played_tokens"]
    assert end["known_tokens"] >= edit["prompt_tokens"] + edit["played_tokens"]


@pytest.mark.slow
@pytest.mark.parametrize("agent", [claude, codex, opencode], ids=lambda agent: agent.__name__)
def test_the_model_that_ships_answers(client, serve, project, agent):
    server = serve("--request-timeout", "1500")
    answer = agent(client, server.url, "cachalot-nano", "Say hello.", edits=False, limit=200)
    with urllib.request.urlopen(f"{server.url}/status") as reply:
        status = json.load(reply)
    print(f"{agent.__name__}: {answer!r}; {status}")
    assert status["prompt_tokens"] > 10_000 and status["generated_tokens"] > 0 and status["failed"] == 0
