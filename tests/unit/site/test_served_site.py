"""The server of `vlmrun watch`: for who has its address, the site and what it links to."""

import urllib.error
import urllib.request

import pytest

from vlmrun.site import build, serve


@pytest.fixture
def address(root):
    build.build(root)
    (root / "secret.txt").write_text("x")
    for name in ("weights", "checkpoints"):
        (root / "stages/large-1" / name).mkdir(parents=True)
        (root / "stages/large-1" / name / "model").write_text("x")
    (root / "runs/weights/1").mkdir(parents=True)
    (root / "runs/weights/1/run.json").write_text("{}")
    with serve.serving(root, 0) as found:
        yield found


@pytest.fixture
def base(address):
    return address("index.html").partition("site/")[0]


def ask(address, method="GET", **headers):
    try:
        request = urllib.request.Request(address, headers=headers, method=method)
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


@pytest.fixture
def cookie(address):
    given = ask(address("index.html"))[1]["Set-Cookie"]
    assert {"HttpOnly", "SameSite=Strict"} <= {part.strip() for part in given.split(";")}
    return given.partition(";")[0]


def test_the_address_opens_the_site_and_its_cookie_all_of_it(address, base, cookie):
    assert base.startswith("http://127.0.0.1:")
    for place in ("site/index.html", "site/runs/demo/1.js", "runs/demo/1/run.json", "runs/weights/1/run.json"):
        assert ask(base + place, Cookie=f"other=1; {cookie}")[0] == 200, place
    assert ask(address("runs/demo/1.html"))[0] == 200


@pytest.mark.parametrize("how", [{}, {"Cookie": "vlmrun=1"}, {"Cookie": "=;;"}])
def test_who_does_not_have_it_is_refused(base, cookie, how):
    name = cookie.partition("=")[0]
    for place in ("site/index.html", "site/index.html?token=", "site/index.html?token=guess", "gone", "site/%00"):
        for headers in (how, {"Cookie": f"{name}="}, {"Cookie": f"{name}=guess"}, {"Cookie": f"{name}=\xe9"}):
            code, given, _ = ask(base + place, **headers)
            assert (code, given["Set-Cookie"]) == (403, None), (place, headers)


@pytest.mark.parametrize(
    "place",
    ["secret.txt", "site/../secret.txt", "site/%2e%2e/secret.txt", "", "runs/", "../secret.txt", "%00", "site/%00",
     "site/" + "x" * 5000, "stages/large-1/weights/model", "stages/large-1/checkpoints/model"],
)  # fmt: skip
def test_nothing_else_is_there(base, cookie, place):
    assert ask(base + place, Cookie=cookie)[0] == 404


def test_only_names_of_this_machine_are_answered(base, cookie):
    page = base + "site/index.html"
    for host in ("127.0.0.1", "localhost", "localhost:8000"):  # a browser leaves port 80 out
        assert ask(page, Cookie=cookie, Host=host)[0] == 200, host
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example"):
        assert ask(page, Cookie=cookie, Host=host)[0] == 403, host


def test_head_has_no_body(base, cookie):
    code, headers, body = ask(base + "site/index.html", "HEAD", Cookie=cookie)
    assert (code, body) == (200, b"")
    assert int(headers["Content-Length"]) > 0
