"""Documentation, help and messages use the words of `docs/glossary.md`; `words_left.txt` holds the modules to do."""

from tests.docs import words


def test_documents_use_the_words_of_the_glossary():
    found = {words.name(path): words.found(path) for path in words.documents()}
    assert len(found) > 200
    assert not any(found.values()), {name: uses for name, uses in found.items() if uses}


def test_modules_use_the_words_of_the_glossary():
    left = set(words.left())
    found = {words.name(path): words.found(path) for path in words.modules() if words.name(path) not in left}
    assert not any(found.values()), {name: uses for name, uses in found.items() if uses}


def test_the_list_of_modules_to_do_only_shrinks():
    done = [name for name in words.left() if not (words.ROOT / name).is_file() or not words.found(words.ROOT / name)]
    assert not done, f"done; run python -m tests.docs.words --left: {done}"


def test_words_are_found_where_readers_see_them_and_not_in_code(tmp_path):
    module = tmp_path / "module.py"
    module.write_text(
        '"""It goes on."""\npicture = "picture"  # it lies here\nraise ValueError("one `picture` is learnt")\n'
    )
    assert words.found(module) == ["1: goes on", "2: lies", "3: learnt"]
    page = tmp_path / "page.md"
    page.write_text("A picture, `a\npicture`, [it](picture.md).\n\n```text\npicture\n```\nIt was told.\n")
    assert words.found(page) == ["1: picture", "7: told"]
    values = tmp_path / "values.yaml"
    values.write_text("picture: 1  # so many\n")
    assert words.found(values) == ["1: so many"]
