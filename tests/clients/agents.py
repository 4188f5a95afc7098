"""How each coding agent is pointed at a server, run once without a terminal, and kept from talking to anyone else.

An agent's `ask` takes `client` (conftest.py), the server's URL, the model's name, a prompt and what the agent may do: edit
files and run commands in its folder, or only read. It returns the agent's answer. `limit` bounds an answer's tokens where the
agent has a setting for that."""

import json


def claude(client, url, model, prompt, edits, limit=None):
    mode = "acceptEdits" if edits else "default"
    written = client(
        ["claude", "--print", "--output-format", "json", "--max-turns", "6", "--permission-mode", mode, prompt],
        timeout=1800,
        ANTHROPIC_BASE_URL=url,
        ANTHROPIC_AUTH_TOKEN="any-key",
        ANTHROPIC_MODEL=model,
        ANTHROPIC_SMALL_FAST_MODEL=model,
        API_TIMEOUT_MS="1800000",
        # All traffic but that to the model: telemetry, error reports, updates, surveys.
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
        DISABLE_TELEMETRY="1",
        DISABLE_ERROR_REPORTING="1",
        DISABLE_AUTOUPDATER="1",
        **({"CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(limit)} if limit else {}),
    )
    result = json.loads(written)
    assert not result["is_error"], result
    return result["result"]


CODEX = """
model = "{model}"
model_provider = "local"
check_for_update_on_startup = false

[model_providers.local]
name = "local"
base_url = "{url}/v1"
wire_api = "responses"
stream_idle_timeout_ms = 1800000

[analytics]
enabled = false

[feedback]
enabled = false
"""


def codex(client, url, model, prompt, edits, limit=None):
    home = client.folder.parent / "codex"
    home.mkdir()
    (home / "config.toml").write_text(CODEX.format(url=url, model=model))
    answer = client.folder.parent / "answer.txt"
    # The tests' network has nobody in it; a sandbox in the sandbox is not to be had everywhere.
    freedom = ["--dangerously-bypass-approvals-and-sandbox"] if edits else ["--sandbox", "read-only"]
    client(["codex", "exec", "--json", "--output-last-message", answer, *freedom, prompt], timeout=1800, CODEX_HOME=str(home))
    return answer.read_text()


def opencode(client, url, model, prompt, edits, limit=None):
    allowed = "allow" if edits else "ask"  # nobody answers: refused
    config = {
        "autoupdate": False,
        "share": "disabled",
        "model": f"local/{model}",
        "small_model": f"local/{model}",
        "permission": {"edit": allowed, "bash": allowed, "webfetch": "deny"},
        "provider": {
            "local": {
                "npm": "@ai-sdk/openai-compatible",
                "options": {"baseURL": f"{url}/v1", "apiKey": "any-key", "timeout": 1_800_000},
                "models": {model: {"tool_call": True, "limit": {"context": 131_072, "output": limit or 8192}}},
            }
        },
    }
    written = client(
        ["opencode", "run", "--format", "json", prompt],
        timeout=1800,
        OPENCODE_CONFIG_CONTENT=json.dumps(config),
        OPENCODE_DISABLE_AUTOUPDATE="1",
        OPENCODE_DISABLE_MODELS_FETCH="1",
        OPENCODE_DISABLE_LSP_DOWNLOAD="1",
        OPENCODE_DISABLE_DEFAULT_PLUGINS="1",
    )
    events = [json.loads(line) for line in written.splitlines() if line.startswith("{")]
    errors = [event for event in events if event["type"] == "error"]
    assert not errors, errors
    texts = [event["part"]["text"] for event in events if event["type"] == "text"]
    return texts[-1] if texts else ""
