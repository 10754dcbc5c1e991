"""Words, tests, arithmetic and loops beside a real bash: what it hands to a program is what is read here."""

from __future__ import annotations

import subprocess

import pytest

from vlmrun.importers.shell.marks import is_unknown, shown
from vlmrun.importers.shell.reader import read_script

RECORDER = 'go() { printf "%s\\001" "$@"; printf "\\002"; }\n'
SNIPPETS = [
    "go a 'b c' \"d e\" f\\ g $'t\\tn' \"q\\\"q\" 'a'\"b\"c",
    "X='a  b'; go $X \"$X\" x$X\"y\" ${X}z",
    'X=; go $X "$X" ${X:-d} ${X-e} "${Y:-f g}" ${Y:-f g} ${X:+set} ${Z:=kept} $Z',
    "P=a/b.tar.gz; go ${P%.*} ${P%%.*} ${P#*/} ${P##*.} ${P//a/x} ${P/.*/_} ${P/#a/s} ${P/%gz/e}",
    "P=a/b.tar.gz; go ${#P} ${P:2} ${P:2:3} ${P: -2}",
    "P=Ab; go ${P^^} ${P,,} ${P^} ${P,}",
    'A=(x "y z" w); A+=(v); go ${A[@]} ; go "${A[@]}" ; go "${A[*]}"',
    'A=(x "y z" w); go ${#A[@]} ${A[0]} "${A[1]}" "${A[@]:1:2}" "${A[@]%x}"',
    'A=(); go "${A[@]}" a; go "" b; A[2]=q; go ${A[2]}',
    "go {a,b}x {1..3} x{1..2}{a,b} {a} {1..3..2} \"{a,b}\" {c..a}",
    "I=5; go $((I+1)) $(( I * 2 - 3 )) $((I/2)) $((-I/2)) $((I%3)) $((I>3)) $((I==5 && 1)) $(( (1+2)*3 ))",
    "for I in 1 2; do for J in a b; do go $I$J; done; done",
    "for ((i=0;i<3;i++)); do [ $i -eq 1 ] && continue; go $i; done; go end$i",
    "i=0; while [ $i -lt 3 ]; do i=$((i+1)); if [ $i = 2 ]; then break; fi; go $i; done",
    "until [ \"$n\" = xx ]; do n=x$n; go $n; done",
    'X=abc; case $X in b*) go no;; a*|z) go yes;; *) go other;; esac',
    'X=abc; [[ $X == a* ]] && go 1; [[ $X == "a*" ]] || go 2',
    'X=abc; [[ -n $X && $X != b ]] && go 3; [ -z "$X" -o "$X" = abc ] && go 4',
    '[ ! -n "" ] && go 5; if test 3 -gt 2; then go 6; else go 7; fi',
    'if [ a = b ]; then go 8; elif [ b = b ]; then go 9; fi',
    'f() { local q=$1; shift; go $q "$@" $#; }; f a "b c" d; f',
    'set -- a "b c"; go "$@"; go $#; shift; go "$1"',
    'X="a b"; go `echo $X` $(echo "$X") "$(echo x; echo y)"',
    'go $(basename /a/b.c .c) $(dirname /a/b) $(printf "%s-%s" 1 2) $(seq 3)',
    "cat > f.txt <<EOF\n line $((1+1))\nEOF\ngo \"$(cat f.txt)\"",
    "cat > f.txt <<'EOF'\n$X\nEOF\ngo \"$(cat f.txt)\"",
    "C='go a \"b c\"'; eval $C; eval \"$C d\"",
    "go a \\\n  b\\\nc \\\n  d",
    "X=1; (X=2; go $X); go $X; { X=3; }; go $X",
    "true && go a; false || go b; ! false && go c; true || go d",
    "go a; # comment\n# go b\ngo c # d",
    "N=XY; XY=5; go ${!N}; go \"$10\"; unset N; go \"${N-gone}\"",
    'S="--a 1 \\\n   --b 2\n --c"; go $S',
    "X=5; ((X++)); go $X; let X=X*2; go $X; (( X > 3 )) && go big",
    'set -euo pipefail; go "$@" end',
    'set -e -o pipefail -- a "b c"; go "$@"; set +e; set -u d; go "$@"',
    'X="a b\n c"; R="go $X"; eval ${R}; eval $R d',
    'X+=a; X+=b; go $X; go "a$X"c; export Y=1 Z="2 3"; go $Y "$Z"',
]  # fmt: skip


def _bash(script, folder):
    done = subprocess.run(
        ["bash", "-c", RECORDER + script],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=20,
        env={"PATH": "/usr/bin:/bin"},
    )
    return [record.split("\1")[:-1] for record in done.stdout.split("\2")[:-1]]


@pytest.mark.parametrize("script", SNIPPETS)
def test_arguments_are_those_of_bash(tmp_path, script):
    path = tmp_path / "s.sh"
    path.write_text(script, encoding="utf-8")
    ours = [
        [shown(word) for word in command.argv[1:]] for command in read_script(path).commands if command.argv[0] == "go"
    ]
    # `printf` prints one empty record for no arguments.
    assert [words or [""] for words in ours] == _bash(script, tmp_path)


@pytest.mark.parametrize(
    ("script", "cause"),
    [
        ("go $(date +%F)", "date +%F"),
        ("N=$(nvidia-smi -L | wc -l); go --n $N", "nvidia-smi -L | wc -l"),
        ("go $(echo a | tr a b)", "echo a | tr a b"),
        ("read -r X; go $X", "read X"),
        ('R="go $(date "+%H %M") b"; eval ${R}', 'date "+%H %M"'),
    ],
)
def test_what_only_a_program_knows_is_listed(tmp_path, script, cause):
    path = tmp_path / "s.sh"
    path.write_text(script, encoding="utf-8")
    reading = read_script(path)
    assert f"$({cause})" in shown(" ".join(reading.commands[-1].argv))
    assert any(cause in note.text for note in reading.notes)


@pytest.mark.parametrize(
    "guard",
    [
        "[ -d /data/x ] || exit 1",
        "[[ -f $1 ]] || { echo missing >&2; exit 2; }",
        "if [ ! -e model ]; then echo no; exit 1; fi",
        "command -v deepspeed > /dev/null || exit 1",
        "f() { [ -d a ] || return 1; }; f",
    ],
)
def test_a_guard_over_what_is_not_known_does_not_end_the_script(tmp_path, guard):
    path = tmp_path / "s.sh"
    path.write_text(f"{guard}\ngo on\n", encoding="utf-8")
    reading = read_script(path)
    assert ("go", "on") in [command.argv for command in reading.commands]


def test_a_branch_is_taken_where_the_other_ends_the_script(tmp_path):
    path = tmp_path / "s.sh"
    path.write_text("if [ -d data ]; then go on; else exit 1; fi\ngo end\n", encoding="utf-8")
    reading = read_script(path)
    assert [command.argv for command in reading.commands] == [("go", "on"), ("go", "end")]
    assert any("a guard" in note.text for note in reading.notes)


@pytest.mark.parametrize("name", ["RANDOM", "HOSTNAME", "SECONDS"])
def test_bashs_own_variables_are_not_known(tmp_path, name):
    path = tmp_path / "s.sh"
    path.write_text(f"go --port $((1 + {name} % 9)) a${name}\n", encoding="utf-8")
    (command,) = read_script(path).commands
    assert [is_unknown(word) for word in command.argv] == [False, False, True, True]


def test_scripts_that_call_scripts_are_followed_below_the_root_only(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.sh").write_text("X=1\nsource b.sh 2\nbash c.sh q $X\nbash ../out.sh\n", encoding="utf-8")
    (tmp_path / "in" / "b.sh").write_text("X=$1\n", encoding="utf-8")
    (tmp_path / "in" / "c.sh").write_text('X=9\ngo "$@" $0\n', encoding="utf-8")
    (tmp_path / "out.sh").write_text("go outside\n", encoding="utf-8")
    reading = read_script(tmp_path / "in" / "a.sh")
    assert [command.argv for command in reading.commands] == [("go", "q", "2", "c.sh")]
    assert any("../out.sh" in note.text for note in reading.notes)
