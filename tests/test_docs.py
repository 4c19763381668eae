"""What the documents name exists: links, headings, modules, flags, config keys, stages and files."""

import importlib.util
import re
import shlex

import pytest
from conftest import ROOT

from cnn_jax import config, models

DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "reports/runs/README.md")]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md"))
TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in DOCUMENTS}
RECIPES = "docs/extending.md"  # names files, keys and stages that the reader adds
KEYS = set().union(*(config.keys_of(name) for name in models.MODELS))
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")


in_all = pytest.mark.parametrize("name", TEXTS)
in_all_but_recipes = pytest.mark.parametrize("name", [name for name in TEXTS if name != RECIPES])


def anchors(text):
    """The fragments that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(text):
    """The words of every command `python -m cnn_jax.X ...`, in code blocks and in inline code."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]
    return [shlex.split(line, comments=True) for line in lines if "python -m cnn_jax." in line]


@in_all
def test_links_and_anchors_exist(name):
    for link in filter(None, (a or b for a, b in LINK.findall(TEXTS[name]))):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


@in_all_but_recipes
def test_paths_exist(name):
    path = r"(?:cnn_jax|configs|docs|reports|scripts|tests)/(?:[\w.-]+/)*(?:[\w-]+\.[a-z]\w*\b)?"
    for found in re.findall(rf"(?<![\w/.-]){path}", TEXTS[name]):
        assert (ROOT / found).exists(), found


@in_all
def test_modules_exist(name):
    for module in re.findall(r"python -m (cnn_jax[\w.]*)", TEXTS[name]):
        assert importlib.util.find_spec(module), module


@in_all_but_recipes
def test_config_keys_are_declared(name):
    for key in re.findall(r"--(?:no)?config\.([\w.]*\w)", TEXTS[name]):
        assert key in KEYS or any(declared.startswith(f"{key}.") for declared in KEYS), key


@in_all_but_recipes
def test_stages_exist(name):
    for stage in re.findall(r"--config=([\w/.]+)", TEXTS[name]):
        if not stage.isupper():  # a placeholder
            config.load(stage if "/" not in stage else ROOT / stage)


@in_all_but_recipes
def test_overrides_of_commands_are_valid(name):
    for words in commands(TEXTS[name]):
        given = dict(word.removeprefix("--").split("=", 1) for word in words if word.startswith("--config"))
        stage = given.pop("config", "base")
        overrides = {key.removeprefix("config."): value for key, value in given.items() if not value.isupper()}
        loaded = config.load("base" if stage.isupper() else stage, overrides)
        config.validate(loaded)


def test_every_document_is_linked():
    linked = {link.partition("#")[0] for link in re.findall(r"docs/\w+\.md", TEXTS["README.md"])}
    assert linked == {name for name in TEXTS if name.startswith("docs/")}


def test_a_broken_document_is_noticed():
    assert anchors("# One step, `twice`\n```\n# no heading\n```\n") == {"one-step-twice"}
    assert commands("`python -m cnn_jax.main\n--a=1`\n```\npython -m cnn_jax.main \\\n  --b='x y'  # why\n```\n") == [
        ["python", "-m", "cnn_jax.main", "--b=x y"],
        ["python", "-m", "cnn_jax.main", "--a=1"],
    ]
