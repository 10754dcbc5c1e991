import logging

from vlmrun.eval.progress import progress


def test_plain_lines_tell_the_end_and_stay_rare(caplog, monkeypatch):
    monkeypatch.setenv("CI", "true")
    with caplog.at_level(logging.INFO, logger="vlmrun"), progress("answers") as report:
        for done in range(1, 101):
            report(done, 100)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("answers: 100 of 100 questions")


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr("vlmrun.logs.is_terminal", lambda: True)
    with progress("answers") as report:
        report(1, 2)
        report(2, 2)
    assert capsys.readouterr().out == ""
