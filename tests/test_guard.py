"""The guard itself: a suite that says it runs offline has to notice when it doesn't."""

import socket
import urllib.request

import pytest

from tests.conftest import NetworkTouchedError


def test_connecting_is_refused():
    with pytest.raises(NetworkTouchedError):
        socket.create_connection(("127.0.0.1", 9))


def test_names_are_not_looked_up():
    with pytest.raises(NetworkTouchedError):
        urllib.request.urlopen("http://example.org")


def test_the_home_cache_is_out_of_reach():
    import huggingface_hub.constants

    assert huggingface_hub.constants.HF_HUB_CACHE.startswith("/nonexistent/")
    assert huggingface_hub.constants.HF_HUB_OFFLINE
