"""Documentation, help and messages use the words of `docs/glossary.md`."""

from tests.docs import words


def test_documents_use_the_words_of_the_glossary():
    found = {words.name(path): words.found(path) for path in words.documents()}
    assert len(found) > 200
    assert not any(found.values()), {name: uses for name, uses in found.items() if uses}


def test_modules_use_the_words_of_the_glossary():
    found = {words.name(path): words.found(path) for path in words.modules()}
    assert len(found) > 400
    assert not any(found.values()), {name: uses for name, uses in found.items() if uses}


def test_words_that_are_kept_are_used():
    for name, kept in words.KEPT.items():
        text = (words.ROOT / name).read_text("utf-8").lower()
        assert all(word in text for word in kept), name


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
