"""A judge behind a real HTTP server that misbehaves."""

import http.server
import json
import threading
import time
from collections import Counter

import pytest

from vlmrun.cli.app import main
from vlmrun.cli.judge import judged
from vlmrun.errors import ConfigError, LaunchError
from vlmrun.eval import judge, judge_config, review, review_summary
from vlmrun.report import review_page


class Server(http.server.ThreadingHTTPServer):
    """Behaves by what stands in the question: `CODE 429`, `SLOW`, `NONSENSE`, `CUT`; after two attempts it is good."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen = Counter()
        self.keys = set()
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *_):
        pass  # a client that gave up


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        server = self.server
        with server.lock:
            server.seen[text] += 1
            server.keys.add(self.headers.get("Authorization"))
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            self._reply(text, server.seen[text])
        finally:
            with server.lock:
                server.at_once -= 1

    def _reply(self, text, attempt):
        time.sleep(0.02)
        stubborn = "ALWAYS" in text
        if "CODE" in text and (stubborn or attempt < 3):
            self.send_response(int(text.split("CODE ")[1][:3]))
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            self.send_header("Location", "http://127.0.0.1:1/elsewhere")
            self.end_headers()
            return
        if "SLOW" in text and (stubborn or attempt < 3):
            time.sleep(0.6)
        content = {"choices": [{"message": {"content": "8 7\nThe first is better."}}]}
        data = json.dumps(content).encode()
        if "NONSENSE" in text and (stubborn or attempt < 3):
            data = b"<html>\xff bad gateway"
        if "UNREADABLE" in text:
            data = json.dumps({"choices": [{"message": {"content": "Both are fine."}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data) + (9 if "CUT" in text and (stubborn or attempt < 3) else 0)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server():
    found = Server()
    thread = threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()


QUICK = ["wait_seconds=0.0", "timeout_seconds=0.4", "attempts=3", "model=m"]


def judge_at(server, *changes):
    return judge_config.load("local", [f"url={server.url}", *QUICK, *changes])


def bodies(found, *texts):
    return [judge.request(found, [{"role": "user", "content": text}]) for text in texts]


def quiet(done, total):
    pass


@pytest.mark.parametrize("trouble", ["CODE 429", "CODE 500", "CODE 503", "SLOW", "NONSENSE", "CUT"])
def test_what_passes_is_asked_again(server, tmp_path, trouble):
    found = judge_at(server)
    (verdict,) = judge.ask(found, bodies(found, trouble), judge.Cache(tmp_path), quiet)
    assert review.scores(verdict.text) == (8.0, 7.0)
    assert server.seen[trouble] == 3


@pytest.mark.parametrize("trouble", ["CODE 429", "CODE 500", "SLOW", "NONSENSE", "CUT"])
def test_attempts_end(server, tmp_path, trouble):
    found = judge_at(server)
    text = f"{trouble} ALWAYS"
    (verdict,) = judge.ask(found, bodies(found, text), judge.Cache(tmp_path), quiet)
    assert verdict.text is None
    assert verdict.reason.endswith("3 times")
    assert server.seen[text] == 3
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize("code", [400, 422, 302])
def test_a_question_that_is_refused_is_asked_once_and_never_elsewhere(server, tmp_path, code):
    found = judge_at(server)
    (verdict,) = judge.ask(found, bodies(found, f"CODE {code}"), judge.Cache(tmp_path), quiet)
    assert (verdict.text, server.seen[f"CODE {code}"]) == (None, 1)


def test_a_wrong_key_ends_it(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    found = judge_at(server, "key_env=MY_KEY")
    with pytest.raises(LaunchError, match="refuses: HTTP 401") as error:
        judge.ask(found, bodies(found, "CODE 401 ALWAYS"), judge.Cache(tmp_path), quiet)
    assert "secret" not in str(error.value)
    assert server.keys == {"Bearer secret"}


def test_a_key_is_in_the_environment_or_nowhere(server, tmp_path, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    found = judge_at(server, "key_env=MY_KEY")
    with pytest.raises(ConfigError, match="key is not set"):
        judge.ask(found, bodies(found, "x"), judge.Cache(tmp_path), quiet)
    with pytest.raises(ConfigError, match="in the open"):
        judge_config.load("local", ["url=http://example.com/v1", "key_env=MY_KEY", "model=m"])
    with pytest.raises(ConfigError, match="holds a password"):
        judge_config.load("local", ["url=https://a:b@example.com/v1", "model=m"])


def test_replies_are_kept_and_replayed_without_a_server(server, tmp_path):
    found, cache = judge_at(server), judge.Cache(tmp_path)
    asked = bodies(found, "one", "two", "\ud800")
    first = judge.ask(found, asked, cache, quiet)
    again = judge.ask(found, asked, cache, quiet)
    assert [one.text for one in again] == [one.text for one in first]
    assert all(one.cached for one in again)
    assert sum(server.seen.values()) == 3
    server.shutdown()
    replayed = judge.ask(found, [*asked, *bodies(found, "new")], cache, quiet, offline=True)
    assert [one.text is None for one in replayed] == [False, False, False, True]


def test_a_judge_that_dies_midway_loses_nothing_said(server, tmp_path):
    found, cache = judge_at(server, "concurrency=1"), judge.Cache(tmp_path)
    texts = ["a", "b", "CODE 403 ALWAYS", "c", "d"]
    with pytest.raises(LaunchError):
        judge.ask(found, bodies(found, *texts), cache, quiet)
    assert len(list(tmp_path.glob("*.json"))) >= 2
    before = sum(server.seen.values())
    judge.ask(found, bodies(found, "a", "b"), cache, quiet)
    assert sum(server.seen.values()) == before


def test_so_many_at_a_time_and_no_more(server, tmp_path):
    found = judge_at(server, "concurrency=3")
    judge.ask(found, bodies(found, *map(str, range(12))), judge.Cache(tmp_path), quiet)
    assert 2 <= server.most_at_once <= 3


def test_the_estimate_is_an_upper_bound_of_the_price():
    found = judge_config.load("openai", ["price_in=10.0", "price_out=20.0", "max_tokens=100"])
    tokens, price = judge.estimate(found, bodies(found, "x" * 4000))
    assert tokens == pytest.approx(1000, abs=20)
    assert price == pytest.approx(0.01 + 0.002, rel=0.05)
    assert judge.estimate(judge_config.load("local", ["model=m"]), bodies(found, "x"))[1] is None


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("8 7", (8, 7)), ("8, 7", (8, 7)), ("\n 8.5  7 \nbecause", (8.5, 7)), ("[9; 10]", (9, 10)),
        ("8/10 7/10", (8, 7)),
        ("8", None), ("8 7 6", None), ("eight 7", None), ("nan 7", None), ("11 3", None), ("-1 3", None), ("", None),
    ],
)  # fmt: skip
def test_a_verdict_is_read_or_it_is_none(text, pair):
    assert review.scores(text) == pair


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def files(tmp_path):
    words = ["plain", "CODE 500", "UNREADABLE", "CODE 500 ALWAYS"]
    questions = [{"question_id": n, "text": word, "category": "conv", "image": "a.jpg"} for n, word in enumerate(words)]
    sides = [
        [{"question_id": n, "text": f"{side} {n} </script><b>", "answer_id": f"{side}{n}"} for n in range(len(words))]
        for side in ("first", "second")
    ]
    (tmp_path / "rules.json").write_text(json.dumps({"llava_bench_conv": {"role": "Assistant", "prompt": "Rate."}}))
    return [
        written(tmp_path / "q.jsonl", questions),
        written(tmp_path / "a.jsonl", sides[0]),
        written(tmp_path / "b.jsonl", sides[1]),
        *("--rules", str(tmp_path / "rules.json")),
        *("--context", written(tmp_path / "c.jsonl", [{"image": "a.jpg", "caption": "a cat"}])),
        *("--out", str(tmp_path / "out")),
    ]


def test_the_verb(server, files, tmp_path, capsys):
    settings = [part for change in [f"url={server.url}", *QUICK] for part in ("--set", change)]
    assert main(["judge", *files, *settings]) == 0
    told = capsys.readouterr()
    assert "4 of 4 reviews to ask for" in told.err
    assert "1 verdicts that cannot be read are left out; 1 of 4 reviews were not given" in told.out
    rows = [json.loads(line) for line in (tmp_path / "out" / "reviews.jsonl").read_text().splitlines()]
    assert [row["tuple"] for row in rows] == [[8.0, 7.0], [8.0, 7.0], [-1, -1]]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["lines"][0] == {"name": "all", "relative": 87.5, "first": 8.0, "second": 7.0, "n": 2}
    (left,) = [json.loads(line) for line in (tmp_path / "out" / "unanswered.jsonl").read_text().splitlines()]
    assert left["question_id"] == 3
    assert main(["judge", *files, *settings, "--offline"]) == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary


def test_a_dear_judge_is_not_asked_without_a_yes(server, files, capsys):
    settings = [f"url={server.url}", *QUICK, "price_in=1e6", "price_out=1e6", "most_price=1.0"]
    arguments = ["judge", *files, *(part for change in settings for part in ("--set", change))]
    assert main(arguments) == ConfigError.exit_code
    assert "above most_price" in capsys.readouterr().err
    assert not server.seen
    assert main([*arguments, "--yes"]) == 0


def test_files_that_do_not_fit_are_named(server, files, tmp_path, capsys):
    written(tmp_path / "b.jsonl", [{"question_id": 0, "text": "x", "answer_id": "y"}])
    assert main(["judge", *files, "--set", f"url={server.url}", "--set", "model=m"]) == 3
    assert capsys.readouterr().err.count("no answer 2") == 3


def test_both_orders_are_averaged():
    straight = {"question_id": 1, "tuple": [8.0, 7.0]}
    swapped = {"question_id": 1, "tuple": [9.0, 6.0], "swapped": True}  # it likes what comes first
    (row,) = judged([straight, swapped])
    assert row["tuple"] == [7.0, 8.0]
    (row,) = judged([straight, {**swapped, "tuple": [-1, -1]}])
    assert row["tuple"] == [-1, -1]


def test_the_page_fetches_nothing_and_runs_nothing_of_the_answers():
    data = review_summary.page_data(
        [{"question_id": 1, "text": "<script>alert(1)</script>", "category": "c"}],
        {"reference": {"1": "</script><img src=x onerror=alert(1)>"}, "ours": {"1": "**b**"}},
        {"reference": {"1": {"content": "8 7\nAssistant 1 wins", "tuple": [8, 7]}}},
    )
    html = review_page.page(data)
    assert html.count("</script>") == 2
    assert "<img" not in html
    assert "default-src 'none'" in html
    assert not [word for word in ("http:", "https:", 'src="', "href=") if word in html]
    assert "**Assistant 1** wins" in html
