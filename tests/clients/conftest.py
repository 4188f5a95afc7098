"""Servers and surroundings for clients.

`nano` is `cachalot serve` with the model that ships. `playback(turns)` starts a server that says what it is told (see
crates/cachalot-server/examples/playback.rs). `surroundings` is all that a client's process gets to know: a home of its own and
every telemetry that has a switch turned off."""

import json
import os
import queue
import re
import subprocess
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = Path(os.environ.get("CACHALOT_CLIENTS", ROOT / "target/client-tests"))
KEY = "any-key"


def pytest_addoption(parser):
    release = ROOT / "target/release"
    parser.addoption("--server-binary", default=release / "cachalot", type=Path, help="the program `cachalot`")
    parser.addoption("--playback-binary", default=release / "examples/playback", type=Path, help="cachalot-server's example `playback`")
    parser.addoption("--open-webui", action="store_true", help="Open WebUI, too, which `run` then installs")
    parser.addoption("--quick", action="store_true", help="leave out agents with their long prompts on the model that ships")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes; left out with --quick")
    for option in "--server-binary", "--playback-binary":
        if not os.access(config.getoption(option), os.X_OK):
            pytest.exit(f"{option}: there is no program {config.getoption(option)}", 2)


def pytest_collection_modifyitems(config, items):
    if config.getoption("--quick"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow, and --quick was given"))


class Server:
    """A server that runs until `stop`. `url` has no slash at its end; what it writes goes to `output`."""

    def __init__(self, command, output, env=None):
        self.output = Path(output)
        self.process = subprocess.Popen(
            [str(part) for part in command], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        lines = queue.Queue()
        threading.Thread(target=self._copy, args=(lines,), daemon=True).start()
        while True:
            line = lines.get(timeout=120)
            if line is None:
                raise RuntimeError(f"the server did not start:\n{self.output.read_text()}")
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                self.url = found[0]
                return

    def _copy(self, lines):
        with self.output.open("w") as output:
            for line in self.process.stdout:
                output.write(line)
                output.flush()
                lines.put(line)
        lines.put(None)

    def stop(self):
        self.process.terminate()
        code = self.process.wait(timeout=60)
        assert code == 0, f"the server ended with {code}:\n{self.output.read_text()}"


class Playback(Server):
    def __init__(self, binary, folder, turns, thinks):
        script, self.log = folder / "script.json", folder / "log.jsonl"
        script.write_text(json.dumps({"thinks": thinks, "turns": turns}))
        self.turns = len(turns)
        super().__init__([binary, script, self.log], folder / "server.log")

    def requests(self):
        """What was asked: objects with turn, prompt, prompt_tokens, known_tokens, played_tokens, thinking, max_tokens, ..."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def turn(self, index):
        """The request that was answered with this turn."""
        (found,) = [request for request in self.requests() if request["turn"] == index]
        return found


def server_env(folder):
    return {"PATH": os.environ["PATH"], "HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache"), "NO_COLOR": "1"}


@pytest.fixture(scope="session")
def serve(pytestconfig, tmp_path_factory):
    """serve(*arguments) -> a `cachalot serve` at a free port."""
    servers = []

    def start(*arguments):
        folder = tmp_path_factory.mktemp("serve")
        command = [pytestconfig.getoption("--server-binary"), "serve", "--port", 0, *arguments]
        servers.append(Server(command, folder / "server.log", server_env(folder)))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def nano(serve):
    return serve()


@pytest.fixture
def playback(pytestconfig, tmp_path_factory):
    """playback(turns, thinks=False) -> a server that plays them."""
    servers = []

    def start(turns, thinks=False):
        folder = tmp_path_factory.mktemp("playback")
        servers.append(Playback(pytestconfig.getoption("--playback-binary"), folder, turns, thinks))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def surroundings(tmp_path):
    """The whole environment of a client that runs as a process."""
    home = tmp_path / "home"
    home.mkdir()
    proxies = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    return {
        "PATH": f"{CLIENTS / 'venv/bin'}:{CLIENTS / 'npm/node_modules/.bin'}:{os.environ['PATH']}",
        "HOME": str(home),
        "TERM": "dumb",
        "LANG": "C.UTF-8",
        "NO_COLOR": "1",
        "DO_NOT_TRACK": "1",
        **proxies,
    }


@pytest.fixture
def client(surroundings, tmp_path):
    """client(command, timeout=..., **environment) -> what it wrote to standard output; fails if the client does."""
    folder = tmp_path / "work"
    folder.mkdir()

    def run(command, timeout=300, stdin="", **environment):
        done = subprocess.run(
            [str(part) for part in command],
            cwd=folder,
            env={**surroundings, **environment},
            input=stdin,
            text=True,
            capture_output=True,
            timeout=timeout,
        )
        assert done.returncode == 0, f"{command[0]} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    run.folder = folder
    return run
