import pytest

from cnn_jax.utils import text


@pytest.mark.parametrize("number, says", [(0, "0 images"), (1, "1 image"), (1234, "1,234 images")])
def test_plurals_follow_the_number(number, says):
    assert text.count(number, "image") == says
