from hypothesis import given
from hypothesis import strategies as st

from vlmrun.data.shards.names import collapse, expand

numbers = st.lists(st.integers(0, 120), max_size=12, unique=True)


@given(numbers, st.sampled_from(["s-{}.tar", "a1/s-{:03}.tar", "{}.tar", "v2.5/x-{}-of-12.tar"]), st.booleans())
def test_runs_expand_to_what_they_were_made_of(found, pattern, as_text):
    names = [pattern.format(number) for number in (sorted(found, key=str) if as_text else sorted(found))]
    runs = collapse(names)
    assert [name for run in runs for name in expand(run)] == names
    assert len(runs) <= len(names)


def test_a_run_keeps_its_width_and_counts_up():
    assert collapse(["s-8.tar", "s-9.tar", "s-10.tar"]) == ["s-{8..9}.tar", "s-10.tar"]
    assert collapse(["s-08.tar", "s-09.tar", "s-10.tar"]) == ["s-{08..10}.tar"]
    assert collapse(["s-3.tar", "s-2.tar"]) == ["s-3.tar", "s-2.tar"]


def test_other_braces_of_a_split_are_understood():
    assert expand("{a,b}-{0..1}.tar") == ["a-0.tar", "a-1.tar", "b-0.tar", "b-1.tar"]
    assert expand("s-{098..101}.tar") == ["s-098.tar", "s-099.tar", "s-100.tar", "s-101.tar"]
    assert expand("{2..0}.tar") == ["2.tar", "1.tar", "0.tar"]
