"""Public names, the cost of importing them, and the parts that a part may import."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import vireid

PACKAGE = Path(vireid.__file__).parent
PUBLIC = [
    *("nn", "losses", "ot", "neighbors", "rerank", "metrics", "data", "protocols", "models", "plots", "training"),
    "cli",
]
OPTIONAL = [
    *("PIL", "click", "faiss", "kornia", "lightning_fabric", "matplotlib", "safetensors", "sklearn", "tensorboard"),
    *("timm", "torchmetrics", "torchvision", "tqdm", "transformers"),
]

# Files that belong to one extra and are imported only inside functions.
BEHIND_AN_EXTRA = {"cli": {"click", "tqdm"}, "metrics/_torchmetrics.py": {"torchmetrics"}}

# The ground plan: a part may import the parts named here and itself. Root: the constants of vireid/__init__.py.
BASE = {"_checks", "_files", "_ops"}
MAY_IMPORT = {
    "__init__": {"_checks"},
    "_checks": set(),
    "_ops": {"_checks"},
    "_files": {"_checks"},
    "neighbors": BASE,
    "ot": BASE,
    "nn": BASE | {"neighbors"},
    "losses": BASE | {"neighbors", "ot", "nn"},  # nn: CRILoss computes a graph layer's output again
    "rerank": BASE | {"neighbors", "nn"},  # nn: graph_transfer ranks with H2FT or GFT
    "metrics": BASE | {"neighbors"},
    "data": BASE | {"nn"},  # nn: skeletons, which key points are named by
    "protocols": BASE | {"neighbors", "metrics", "rerank", "data"},  # data: feature files
    "models": BASE | {"nn", "losses"},
    "plots": BASE | {"metrics", "nn"},  # nn: skeletons, likewise
    "training": BASE | {"neighbors", "ot", "nn", "losses", "rerank", "metrics", "data", "protocols", "models", "plots"},
    "cli": BASE | {"ot", "neighbors", "nn", "rerank", "data", "protocols", "models", "plots", "training"},
    "__main__": {"cli"},
}

# The names that scripts rely on: none may vanish, others may join.
PROMISED = {
    "nn": [
        *("BNNeck", "DualBNNeck", "GFT", "H2FT", "H2FTOutput", "MessageFusionAttention", "PrototypePooling"),
        *("SkeletonAggregation", "TwoStream", "backbone", "keypoint_pooling", "part_grid", "resnet50"),
        "skeleton_adjacency",
    ],
    "losses": [
        *("AffinityInferenceLoss", "CRILoss", "CenterSeparationLoss", "CrossModalityTripletLoss", "GraphOTLoss"),
        *("HCCLoss", "MutualIdentityLoss", "PartContrastiveLoss", "cross_modality_triplet_loss", "graph_ot_loss"),
        *("PartDiversityLoss", "affinity_inference_loss", "center_separation_loss", "cri_loss", "hcc_loss"),
        *("mutual_identity_loss", "part_contrastive_loss", "part_diversity_loss"),
    ],
    "ot": ["GraphOT", "graph_ot"],
    "neighbors": ["ApproximateIndex", "NeighborGraph", "recall", "topk"],
    "rerank": [
        *("AIM", "AfterTransfer", "ECN", "GNN", "GraphTransfer", "QueryExpansion", "SIM", "aim", "cmkr", "ecn", "gnn"),
        *("graph_transfer", "KReciprocal", "k_reciprocal", "mser", "query_expansion", "sim"),
    ],
    "metrics": [
        *("RankMetrics", "RankingMetric", "RetrievalMetric", "affinity_error_rate", "affinity_quality"),
        *("feature_margin", "rank_metrics"),
    ],
    "protocols": ["LLCM", "SYSUMM01", "QueryResults", "RegDB", "Report", "ReportRow"],
    "training": [
        *("METHODS", "RECIPES", "Recipe", "build", "evaluate", "extract_features", "fit", "launch", "load_checkpoint"),
        *("load_model", "open_dataset", "ranking_ways", "read_checkpoint", "settings_of"),
    ],
    "cli": ["main"],
    "data": [
        *("CrossModalIdentitySampler", "Features", "LLCMDataset", "RegDBDataset", "SYSUMM01Dataset", "cache_heatmaps"),
        *("estimate_heatmaps", "generate_synthetic", "load_features", "save_features"),
    ],
    "models": [
        *("AlignedCriterion", "Baseline", "BaselineCriterion", "CIFT", "CIFTCriterion", "G2DA", "G2DACriterion"),
        *("SAAI", "SAAICriterion"),
    ],
    "plots": [
        *("attention_maps", "cmc_curves", "cost_matrices", "embedding_map", "ranked_lists", "skeleton_graph"),
        *("transport_plan", "tsne"),
    ],
}


def parts():
    """Return (part, file) of every source file; a part is a top-level module or sub-package."""
    for file in sorted(PACKAGE.rglob("*.py")):
        yield file.relative_to(PACKAGE).parts[0].removesuffix(".py"), file


def imported_modules(tree):
    """Yield the dotted name of every module that ``tree`` imports, at its top or in a function; '.' if relative."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield "."
            elif node.module == "vireid":  # `from vireid import nn` is an import of vireid.nn
                yield from (f"vireid.{a.name}" if (PACKAGE / a.name).exists() else "vireid" for a in node.names)
                yield from (f"vireid.{a.name}" for a in node.names if (PACKAGE / f"{a.name}.py").exists())
            else:
                yield node.module


def test_root_names():
    assert vireid.__all__ == ["INFRARED", "VISIBLE", "__version__", "modality"]
    assert (vireid.VISIBLE, vireid.INFRARED) == (0, 1)
    assert vireid.__version__.count(".") == 2


def test_the_public_names_are_few():
    assert sum(len(importlib.import_module(f"vireid.{name}").__all__) for name in PUBLIC) <= 180


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_exists_and_is_described(name):
    module = importlib.import_module(f"vireid.{name}")
    assert sorted(set(module.__all__)) == sorted(module.__all__)
    assert set(PROMISED[name]) <= set(module.__all__)
    assert module.__doc__
    for public in module.__all__:
        value = getattr(module, public)
        assert not public.startswith("_"), public
        if isinstance(value, type) or callable(value):
            assert value.__doc__, f"{name}.{public} has no docstring"
            assert not value.__doc__.startswith(f"{public}("), f"{name}.{public} has only a made-up docstring"


def test_every_part_is_tested_here():
    assert {part for part, _ in parts() if not part.startswith("_")} == set(PUBLIC)


def run_fresh(code):
    """Run ``code`` in a new interpreter in which every warning is an error; it must succeed and print nothing."""
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_fresh_import_is_lazy_silent_and_fast():
    """Sub-packages load on first use, optional packages never; torch's compiler, POT and SciPy's solvers take long."""
    run_fresh(f"""
import importlib, sys, vireid
assert not any(name.startswith("vireid.") for name in sys.modules) and "torch" not in sys.modules
try:
    vireid.nothing
except AttributeError as error:
    assert "nothing" in str(error)
else:
    raise AssertionError("vireid.nothing exists")
import torch
before = set(sys.modules)
slow = {{"torch._dynamo", "ot", "scipy.optimize"}} - before
assert "torch._dynamo" in slow, "torch loads its compiler by itself: nothing to see here"
assert vireid.nn.H2FT and vireid.rerank.aim and "losses" in dir(vireid)
for name in ["nn", "rerank", "losses", "ot", "neighbors", "metrics"]:
    importlib.import_module("vireid." + name)
    assert not slow & set(sys.modules), f"{{name}} loads {{slow & set(sys.modules)}}"
for name in {PUBLIC}:
    importlib.import_module("vireid." + name)
    loaded = {{module.split(".")[0] for module in set(sys.modules) - before}} & set({OPTIONAL})
    assert not loaded, f"{{name}} loads {{loaded}}"
""")


def test_every_part_imports_where_no_extra_is_installed():
    """The extras are needed where they are used, not to import the names."""
    run_fresh(f"""
import importlib, sys
for package in {OPTIONAL}:
    sys.modules[package] = None
for name in {PUBLIC}:
    module = importlib.import_module("vireid." + name)
    [getattr(module, public) for public in module.__all__]
""")


@pytest.mark.parametrize(("part", "file"), [pytest.param(*pair, id=str(pair[1].name)) for pair in parts()])
def test_imports_point_one_way(part, file):
    for module in imported_modules(ast.parse(file.read_text(encoding="utf-8"))):
        first, _, rest = module.partition(".")
        assert first not in {"examples", "benchmarks", "tests", "docs"}, f"{file} imports {module}"
        assert module != ".", f"{file} has a relative import"
        if first == "vireid" and rest:
            target = rest.split(".")[0]
            assert target == part or target in MAY_IMPORT[part], f"{file}: {part} must not import {target}"


def test_the_allowed_imports_have_no_circle():
    """A name added to the map cannot make one."""
    left = dict(MAY_IMPORT)
    while left:
        free = [part for part, targets in left.items() if not targets & set(left)]
        assert free, f"a circle among {sorted(left)}"
        for part in free:
            del left[part]


@pytest.mark.parametrize(("part", "file"), [pytest.param(*pair, id=str(pair[1].name)) for pair in parts()])
def test_optional_packages_are_imported_in_the_function_that_needs_them(part, file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        or (isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    top = [
        node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom)) and id(node) not in guarded
    ]
    place = file.relative_to(PACKAGE).as_posix()
    allowed = BEHIND_AN_EXTRA.get(place, BEHIND_AN_EXTRA.get(part, set()) if place != f"{part}/__init__.py" else set())
    for module in imported_modules(ast.Module(top, [])):
        assert module.split(".")[0] not in set(OPTIONAL) - allowed, f"{file} imports {module} at its top"


def test_nothing_untrusted_is_unpickled():
    """Every torch.load in the library says weights_only=True, and pickle itself is never asked to load."""
    for _, file in parts():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            owner = getattr(node.func.value, "id", "")
            assert not (owner == "pickle" and node.func.attr in ("load", "loads")), file
            if owner == "torch" and node.func.attr == "load":
                given = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
                assert given.get("weights_only") is True, f"{file}:{node.lineno}"


def test_the_map_above_sees_imports_of_every_form():
    """The walk finds imports in source written in each way."""
    source = "import vireid.nn\nfrom vireid import VISIBLE, models\nfrom . import y\n"
    source += "def f():\n    from vireid.data.readers import x\n"
    found = set(imported_modules(ast.parse(source)))
    assert found == {"vireid.nn", "vireid", "vireid.models", "vireid.data.readers", "."}


@pytest.mark.parametrize(
    ("package", "extra", "call"),
    [
        ("faiss", "faiss", lambda t: importlib.import_module("vireid.neighbors").topk(t, t, 1, backend="faiss")),
        ("torchvision", "backbones", lambda t: importlib.import_module("vireid.nn").resnet50()),
        ("timm", "backbones", lambda t: importlib.import_module("vireid.nn").resnet50(source="timm")),
        ("matplotlib", "plots", lambda t: importlib.import_module("vireid.plots").cmc_curves({"a": t[0].abs() * 0})),
    ],
)
def test_a_missing_extra_is_named(package, extra, call, hidden, monkeypatch):
    import torch

    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    hidden(package)
    with pytest.raises(ImportError, match=rf"pip install 'vireid\[{extra}\]'"):
        call(torch.ones(3, 2))


def options_of(kind):
    """Return the names of a class's options, and an instance with their defaults."""
    given = {"dim": 6, "num_classes": 3, "channels": 6, "nodes": 4}
    parameters = inspect.signature(kind).parameters.values()
    made = kind(**{p.name: given[p.name] for p in parameters if p.default is p.empty})
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY], made


@pytest.mark.parametrize("name", [n for n in PROMISED["losses"] if n[0].isupper()] + ["GFT", "H2FT"])
def test_repr_shows_the_options(name):
    options, made = options_of(getattr(vireid.losses if hasattr(vireid.losses, name) else vireid.nn, name))
    for option in options:
        # modules among them are printed as children; iterations bound the solver and change no result
        assert f"{option}=" in repr(made) or option in ("value", "iterations", "restarts"), option
