"""docs/keras.md says what the tests hold."""

from tests.conformance.document import FILE, written


def test_the_page_is_written_from_the_tables() -> None:
    assert FILE.read_text(encoding="utf-8") == written(), (
        "write it anew: python -m tests.conformance.document > docs/keras.md"
    )
