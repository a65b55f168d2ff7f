"""Who is answered: names, tokens, other sites' pages."""

import pytest
from starlette.datastructures import Headers

from course_utils.serving.access import Access
from course_utils.serving.refusal import Refusal

HERE = "127.0.0.1:8000"


def asked(access, method="GET", query="", **headers):
    headers = {name.replace("_", "-"): value for name, value in ({"host": HERE} | headers).items()}
    return access.check(method, Headers(headers), query)


def refused(access, *arguments, **options):
    with pytest.raises(Refusal) as refusal:
        asked(access, *arguments, **options)
    return refusal.value.status


def test_a_loopback_server_answers_to_loopback_names_alone():
    access = Access.of("127.0.0.1", loopback=True)
    assert access.token is None
    for host in (HERE, "localhost:8000", "LOCALHOST", "[::1]:8000", "127.0.0.1"):
        asked(access, host=host)
    for host in ("evil.example:8000", "10.0.0.5:8000", "", "127.0.0.1.evil.example", "localhost.evil.example", "[::1"):
        assert refused(access, host=host) == 421


def test_a_server_for_others_wants_its_token():
    access = Access.of("0.0.0.0", loopback=False)
    other = Access.of("0.0.0.0", loopback=False)
    assert len(access.token) >= 32 and access.token != other.token
    for wrong in ("", other.token, access.token[:-1], "é"):
        assert refused(access, query=f"token={wrong}") == 403
        assert refused(access, cookie=f"course_utils_token={wrong}") == 403
        assert refused(access, authorization=f"Bearer {wrong}") == 403
    assert asked(access, query=f"token={access.token}", host="10.0.0.5:8000")
    assert not asked(access, cookie=f"other=1; course_utils_token={access.token}")
    assert not asked(access, authorization=f"Bearer {access.token}")
    assert refused(access, query=f"token={access.token}", host="evil.example") == 421


def test_another_site_s_page_cannot_send():
    access = Access.of("127.0.0.1", loopback=True)
    for method in ("POST", "DELETE"):
        for origin in ("https://evil.example", "null", "http://127.0.0.1:9999", "http://localhost:8000"):
            assert refused(access, method, origin=origin) == 403
        assert refused(access, method, sec_fetch_site="cross-site") == 403
        assert refused(access, method, sec_fetch_site="same-site") == 403
        asked(access, method, origin=f"http://{HERE}", sec_fetch_site="same-origin")
        asked(access, method)  # no browser: curl
