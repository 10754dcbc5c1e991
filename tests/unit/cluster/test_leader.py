"""Node 0 and the others talk over real sockets, in threads of one process; who leaves is noticed at once."""

import contextlib
import json
import signal
import socket
import subprocess
import threading
import time

import pytest

from vlmrun.cluster import channel as talking
from vlmrun.cluster import follower as following
from vlmrun.cluster.channel import Guard, Line
from vlmrun.cluster.follower import follow
from vlmrun.cluster.leader import NOBODY, lead
from vlmrun.cluster.node import Node
from vlmrun.errors import DataError, LaunchError

KEYS = {"pretrain": "k1", "lora": "k2"}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(following, "_SECONDS_BETWEEN_TRIES", 0.02)


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def other(port, tmp_path):
    """`other(rank, start, keys, root)` follows in a thread; `.error` is how it ended."""
    threads = []

    class Other(threading.Thread):
        def __init__(self, rank=1, start=lambda *_: 0, keys=KEYS, root=tmp_path, n_nodes=2):
            super().__init__(daemon=True)
            self.given = (Node(rank, "127.0.0.1", port, n_nodes), root, keys, 10.0, start)
            self.error = None
            threads.append(self)
            self.start()

        def run(self):
            try:
                follow(*self.given)
            except (LaunchError, DataError, KeyboardInterrupt, MemoryError) as error:
                self.error = error

        def ended(self):
            self.join(10)
            assert not self.is_alive()
            return self.error

    yield Other
    for thread in threads:
        thread.join(10)


def node(port, n_nodes=2):
    return Node(0, "127.0.0.1", port, n_nodes)


def test_jobs_are_started_everywhere_and_the_end_is_told(port, tmp_path, other):
    started = []
    others = [other(rank, lambda *given: started.append(given[:3]) or 0, n_nodes=3) for rank in (1, 2)]
    with lead(node(port, 3), tmp_path, KEYS, 10.0) as crew:
        assert list(tmp_path.glob(".nodes-*")) == []
        crew.start("pretrain", 0, 4711)
        crew.start("lora", 1, 4712)
    assert [each.ended() for each in others] == [None, None]
    assert sorted(started) == [("lora", 1, 4712)] * 2 + [("pretrain", 0, 4711)] * 2


def test_one_node_needs_nobody(tmp_path):
    with lead(Node(0, "127.0.0.1", 0, 1), tmp_path / "untouched", {}, 0.0) as crew:
        crew.start("pretrain", 0, 1)
    assert not (tmp_path / "untouched").exists()
    NOBODY.require()


def test_an_error_of_node_0_is_everybodys(port, tmp_path, other):
    one = other()
    with pytest.raises(DataError), lead(node(port), tmp_path, KEYS, 10.0):
        raise DataError("record 5 has no turns", "a.json", "mend it")
    assert isinstance(one.ended(), DataError)
    assert str(one.error) == "error: record 5 has no turns\n  at:  a.json\n  fix: mend it"


def test_a_stop_of_node_0_stops_the_others(port, tmp_path, other):
    one = other()
    with pytest.raises(KeyboardInterrupt), lead(node(port), tmp_path, KEYS, 10.0):
        raise KeyboardInterrupt("stopped at step 3")
    assert isinstance(one.ended(), KeyboardInterrupt)
    assert str(one.error) == "stopped at step 3"


def test_a_bug_of_node_0_is_told_as_well(port, tmp_path, other):
    one = other()
    with pytest.raises(ZeroDivisionError), lead(node(port), tmp_path, KEYS, 10.0):
        raise ZeroDivisionError("by zero")
    assert "node 0 failed: by zero" in str(one.ended())


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"keys": KEYS | {"lora": "k3"}}, "would run another lora than node 0"),
        ({"keys": {"lora": "k2"}}, "would run another pretrain than node 0"),
        ({"rank": 2}, "came, but hardware.nodes is 2"),
        ({"rank": 0}, "came, but hardware.nodes is 2"),
    ],
)
def test_a_node_that_would_do_something_else_is_refused_on_both_sides(port, tmp_path, other, given, told):
    one = other(**given)
    with pytest.raises(LaunchError, match=told), lead(node(port), tmp_path, KEYS, 10.0):
        pass
    assert told in str(one.ended())


def test_a_node_that_does_not_see_the_files_of_node_0_is_refused_on_both_sides(port, tmp_path, other):
    one = other(root=tmp_path / "local")
    with pytest.raises(LaunchError, match=r"(?s)does not see .*share"), lead(node(port), tmp_path, KEYS, 10.0):
        pass
    assert "this node does not see" in str(one.ended())


def test_a_token_elsewhere_is_not_opened(port, tmp_path, monkeypatch):
    secret = tmp_path / "secret"
    secret.write_text("x")
    with socket.create_server(("127.0.0.1", port)) as server:
        found = []
        root = tmp_path / "outputs"

        def come():
            with contextlib.suppress(LaunchError):
                follow(Node(1, "127.0.0.1", port, 2), root, KEYS, 5.0, lambda *_: 0)

        thread = threading.Thread(target=come)
        thread.start()
        line = Line(server.accept()[0])
        assert line.receive(5)["node"] == 1
        line.send({"token": str(secret), "text": "x"})
        found.append(line.receive(5))
        line.close()
        thread.join()
    assert found == [{"sees": False}]


def test_a_node_that_does_not_come_is_named(port, tmp_path, other):
    one = other(n_nodes=3)
    with (
        pytest.raises(LaunchError, match=r"node\(s\) 2 did not come within 3 s"),
        lead(node(port, 3), tmp_path, KEYS, 3.0),
    ):
        pass
    assert "did not come" in str(one.ended())


def test_node_0_that_is_not_there_is_told(port, tmp_path):
    with pytest.raises(LaunchError, match=r"(?s)node 0 cannot be reached: .*MASTER_PORT"):
        follow(Node(1, "127.0.0.1", port, 2), tmp_path, KEYS, 0.0, lambda *_: 0)


def test_a_port_in_use_is_told(port, tmp_path):
    told = pytest.raises(LaunchError, match="cannot listen on port")
    with socket.create_server(("127.0.0.1", port)), told, lead(node(port), tmp_path, KEYS, 1.0):
        pass


def test_a_stranger_is_sent_away_and_waited_on_no_further(port, tmp_path, other):
    def knock():
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
                connection.recv(10)
                return

    stranger = threading.Thread(target=knock)
    stranger.start()
    threading.Timer(0.2, other).start()
    with lead(node(port), tmp_path, KEYS, 10.0):
        stranger.join(5)


def sleeper():
    return subprocess.Popen(["sleep", "60"], start_new_session=True)


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(talking, "SECONDS_TO_END", 0.1)


def test_ranks_of_node_0_are_ended_when_those_of_another_failed(port, tmp_path, other, hasty):
    other(start=lambda *_: 5)
    with lead(node(port), tmp_path, KEYS, 10.0) as crew:
        process = sleeper()
        with crew.guard.watching(process):
            crew.start("pretrain", 0, 1)
            assert process.wait(10) == -signal.SIGKILL
        crew.start("pretrain", 1, 1)  # the node itself is still there: it may be tried again


def test_the_end_of_an_attempt_before_does_not_end_this_one(port, tmp_path, other, hasty):
    going = threading.Event()
    other(start=lambda name, attempt, *_: (going.wait(5), 5)[1] if attempt == 0 else 0)
    with lead(node(port), tmp_path, KEYS, 10.0) as crew:
        process = sleeper()
        with crew.guard.watching(process):
            crew.start("pretrain", 0, 1)
            crew.start("pretrain", 1, 1)
            going.set()
            time.sleep(0.4)
            assert process.poll() is None
            process.kill()
            process.wait()


def test_a_node_that_is_gone_ends_the_ranks_and_allows_no_restart(port, tmp_path, other, hasty):
    going = threading.Event()

    def die(*_):
        going.wait(10)
        raise MemoryError

    one = other(start=die)
    with lead(node(port), tmp_path, KEYS, 10.0) as crew:
        process = sleeper()
        with crew.guard.watching(process):
            crew.start("pretrain", 0, 1)
            going.set()
            assert process.wait(10) == -signal.SIGKILL
        with pytest.raises(LaunchError, match="node 1 has left the run"):
            crew.start("pretrain", 1, 1)
    assert isinstance(one.ended(), MemoryError)


def test_ranks_of_another_node_are_ended_when_node_0_is_gone(port, tmp_path, hasty):
    codes = []

    def start(name, attempt, port, guard: Guard):
        process = sleeper()
        with guard.watching(process):
            codes.append(process.wait(10))
        return codes[-1]

    def lead_and_die():
        with socket.create_server(("127.0.0.1", port)) as server:
            line = Line(server.accept()[0])
            assert line.receive(5)["keys"] == KEYS
            (tmp_path / ".nodes-x").write_text("y")
            line.send({"token": str(tmp_path / ".nodes-x"), "text": "y"})
            assert line.receive(5) == {"sees": True}
            line.send({"start": "pretrain", "attempt": 0, "port": 1})
            line.send({"start": "rm -rf /", "attempt": 0, "port": 1})
            time.sleep(0.2)
            line.close()

    thread = threading.Thread(target=lead_and_die)
    thread.start()
    with pytest.raises(LaunchError, match="node 0 is gone"):
        follow(Node(1, "127.0.0.1", port, 2), tmp_path, KEYS, 5.0, start)
    thread.join()
    assert codes == [-signal.SIGKILL]


def test_messages_are_lines_of_json(port):
    with socket.create_server(("127.0.0.1", port)) as server:
        one = Line(socket.create_connection(("127.0.0.1", port)))
        raw, _ = server.accept()
        one.send({"a": "ä\n"})
        assert json.loads(raw.makefile().readline()) == {"a": "ä\n"}
        for words, heard in ((b'{"b": 1}\n', {"b": 1}), (b"[1]\n", None), (b"{\n", None), (b'{"cut": ', None)):
            raw.sendall(words)
            if words.endswith(b" "):
                raw.close()
            assert one.receive(5) == heard
        one.close()
