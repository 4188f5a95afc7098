"""That clients can talk to nobody else here."""

import urllib.error
import urllib.request

import pytest


def test_nobody_else_can_be_reached():
    # An address for documentation: with a network it would not answer in time, and that is another error.
    with pytest.raises((urllib.error.URLError, ConnectionError)) as caught:
        urllib.request.urlopen("http://192.0.2.1/", timeout=5)
    assert "timed out" not in str(caught.value)
