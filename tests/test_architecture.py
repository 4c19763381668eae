"""The architecture, read from the source: imports only go down, and only `cnn_jax.parallel` names devices."""

import ast
import graphlib

import pytest
from conftest import ROOT

# Lowest first. A package or module imports from the layers below and, without cycles, from its own.
LAYERS = (
    {"errors", "keys", "rng", "runtime", "utils"},
    {"data", "models", "parallel", "transforms", "workdir"},
    {"cli", "config", "configs"},
    {"inference", "training"},
    {"evaluation", "report"},
    {"page"},
    {"__init__", "__main__", "api", "app", "evaluate", "export", "ladder", "main", "predict", "train"},
)
NEVER_TOGETHER = {("inference", "training"), ("training", "inference")}

OF_DEVICES = {
    "Device",
    "NamedSharding",
    "P",
    "default_backend",
    "device_count",
    "devices",
    "distributed",
    "experimental.mesh_utils",
    "experimental.multihost_utils",
    "local_device_count",
    "local_devices",
    "make_mesh",
    "process_count",
    "process_index",
    "set_mesh",
    "shard_map",
    "sharding",
}
# File under cnn_jax/ -> what it names although it is not in parallel/.
EXCEPTIONS = {
    "inference/artifact.py": {"default_backend"},
}


def imported(tree: ast.AST, package: str) -> set[str]:
    """Returns what a module of `package` imports, anywhere in it, as dotted names: "jax.numpy", "jax.sharding.Mesh"."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: -node.level + 1 or None] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def names_of_devices(tree: ast.AST) -> set[str]:
    """Returns which of `OF_DEVICES` a module imports or uses, and "device_put" where it is told the device."""
    used = {name.removeprefix("jax.") for name in imported(tree, "") if name.startswith("jax.")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("jax."):
            used.add(ast.unparse(node).removeprefix("jax."))
    found = {known for known in OF_DEVICES for name in used if f"{name}.".startswith(f"{known}.")}
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    if any(len(call.args) + len(call.keywords) > 1 and is_device_put(call.func) for call in calls):
        found.add("device_put")
    return found


def is_device_put(function: ast.expr) -> bool:
    return ast.unparse(function) in ("jax.device_put", "device_put")


@pytest.fixture(scope="module")
def modules():
    """The syntax tree of every module, by its path under cnn_jax/."""
    folder = ROOT / "cnn_jax"
    return {str(path.relative_to(folder)): ast.parse(path.read_text()) for path in sorted(folder.rglob("*.py"))}


@pytest.fixture(scope="module")
def graph(modules):
    """Which parts of the package import which others, and where: {importer: {imported: {paths}}}."""
    edges = {}
    for path, tree in modules.items():
        importer, *_ = path.removesuffix(".py").split("/")
        package = ".".join(["cnn_jax", *path.split("/")[:-1]])
        for name in imported(tree, package):
            root, *rest = name.split(".")
            if root == "cnn_jax" and rest and rest[0] != importer:
                edges.setdefault(importer, {}).setdefault(rest[0], set()).add(path)
    return edges


def test_every_part_has_a_layer(modules):
    parts = {path.removesuffix(".py").split("/")[0] for path in modules}
    assert not parts - set().union(*LAYERS)


def test_imports_only_go_down(graph):
    layer = {part: number for number, parts in enumerate(LAYERS) for part in parts}
    wrong = [
        f"{path}: {importer} imports {target}"
        for importer, targets in graph.items()
        for target, paths in targets.items()
        for path in paths
        if layer[importer] < layer[target] or (importer, target) in NEVER_TOGETHER
    ]
    assert not wrong


def test_there_are_no_cycles(graph):
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_only_parallel_names_devices(modules):
    found = {path: names_of_devices(tree) for path, tree in modules.items() if not path.startswith("parallel/")}
    assert {path: names for path, names in found.items() if names} == EXCEPTIONS


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import cnn_jax.data.folder as folder", {"cnn_jax.data.folder"}),
        ("from cnn_jax import data, rng", {"cnn_jax.data", "cnn_jax.rng"}),
        ("def f():\n  from cnn_jax.data import folder", {"cnn_jax.data.folder"}),
        ("from . import layers", {"cnn_jax.models.layers"}),
        ("from .ops import conv", {"cnn_jax.models.ops.conv"}),
        ("from .. import training", {"cnn_jax.training"}),
        ("from ..training.loop import train", {"cnn_jax.training.loop.train"}),
    ],
)
def test_every_form_of_import_is_read(source, names):
    assert imported(ast.parse(source), "cnn_jax.models") == names


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("jax.devices()[0].device_kind", {"devices"}),
        ("jax.sharding.NamedSharding(mesh, spec)", {"sharding"}),
        ("from jax.sharding import PartitionSpec as P", {"sharding"}),
        ("from jax import make_mesh", {"make_mesh"}),
        ("import jax.experimental.mesh_utils", {"experimental.mesh_utils"}),
        ("jax.device_put(x, device)", {"device_put"}),
        ("jax.device_put(x)", set()),
        ("devices = x.sharding, x.devices(), jax.device_get(x)", set()),
    ],
)
def test_every_way_to_name_a_device_is_read(source, names):
    assert names_of_devices(ast.parse(source)) == names
