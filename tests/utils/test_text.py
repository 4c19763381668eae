import pytest

from cnn_jax.utils import text


@pytest.mark.parametrize("number, says", [(0, "0 images"), (1, "1 image"), (1234, "1,234 images")])
def test_plurals_follow_the_number(number, says):
    assert text.count(number, "image") == says


def test_control_characters_are_shown_and_not_sent_to_the_terminal():
    assert text.printable("a\x1b[31mb\n\u202ec é") == "a\\x1b[31mb\\n\\u202ec é"
