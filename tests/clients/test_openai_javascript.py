"""OpenAI's JavaScript SDK: openai.test.mjs, run by Node."""

from conftest import CLIENTS, KEY
from pathlib import Path

from shared import WEATHER_TURNS, assert_replayed


def test_openai_javascript(client, nano, playback):
    server = playback(WEATHER_TURNS, thinks=True)
    client(
        ["node", "--test", "--test-reporter=tap", Path(__file__).with_name("openai.test.mjs")],
        NANO=f"{nano.url}/v1",
        PLAYBACK=f"{server.url}/v1",
        KEY=KEY,
        PACKAGES=f"{CLIENTS}/npm/",
    )
    assert_replayed(server)
