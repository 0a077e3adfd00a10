"""Imports go one way: this table is the package's structure, and the source is held to it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tfmeta"

# Lowest first. A name with a dot at its end stands for the whole sub-package.
TENSORS = [
    "types",
    "named_data",
    "choices",
    "checks",
    "foreign.",
    "means",
    "copies",
    "layers",
    "functional",
]
TENSORS += ["derivatives", "inner_optimizers", "constraints", "ops", "models."]
LOOPS = [*TENSORS, "notes", "task_map", "padding", "losses", "class_weights"]
LOOPS += ["packed.", "inner_loop", "inputs", "ends", "agreement"]
# What scores of the same episodes are made of.
SCORES = ["types", "padding", "paired", "score_table", "scoring", "embeddings", "same_parts"]
PUBLIC = [
    *LOOPS,
    "labels",
    "export.",
    "distribution",
    "states.",
    "meta_learner",
    "calibration",
    "evaluation",
    "comparison",
    "inner_rates",
    "algorithms.",
    "class_changes",
    "threshold",
    "unknown",
    "data.",
]
MAY_IMPORT = {
    "types": [],
    "named_data": [],
    "choices": ["named_data"],
    "saying": [],
    "backend": [],
    "checks": ["types", "choices"],
    "files": ["types"],
    "digests": ["types"],
    "bounded_json": ["types"],
    "keras_files": [],
    "history": ["types", "bounded_json"],
    "inside": ["types"],
    "locks": ["types"],
    "finite_loss": ["types"],
    "copies": ["types", "foreign."],
    "drop_block": ["types", "checks"],
    "layers": ["types", "checks", "copies", "drop_block", "foreign.", "means"],
    "functional": ["types", "choices", "layers", "foreign."],
    "derivatives": ["types"],
    "inner_optimizers": ["types", "checks"],
    "constraints": ["types", "foreign.", "inner_optimizers"],
    "ops": ["types", "checks", "distances", "_core"],
    "models.": ["types", "choices", "checks", "layers", "models."],
    "task_map": ["types", "kernels", "foreign."],
    "notes": ["types", "foreign."],
    "losses": ["types", "checks", "foreign.", "notes", "padding", "task_map"],
    "labels": ["types", "agreement", "losses"],
    "arguments": ["types"],
    "readable": ["types"],
    "moving_statistics": ["types", "functional"],
    "fast_weights": ["types"],
    "inner_batches": ["types", "inner_loop", "task_map"],
    "query_batch_norm": ["types", "functional", "task_map"],
    "differentiation": ["types", "derivatives", "inner_loop"],
    "class_weights": ["types", "losses"],
    "foreign.": ["types", "means", "foreign."],
    "means": ["types"],
    "kernels": ["types", "foreign."],
    "devices": ["types", "foreign.", "kernels"],
    "recompute": ["types", "derivatives"],
    "distances": ["types", "kernels"],
    "svgd": ["types"],
    "random_weights": ["types", "foreign."],
    "low_rank": ["foreign."],
    "padding": ["types", "notes"],
    "ends": ["types", "foreign."],
    "agreement": ["types"],
    "inputs": ["types", "foreign.", "padding", "ends"],
    "given": ["types", "inputs"],
    "distribution": ["types", "foreign."],
    "replicated": ["types", "foreign.", "notes", "distribution"],
    "states.": [
        "types",
        "bounded_json",
        "checks",
        "files",
        "foreign.",
        "locks",
        "distribution",
        "states.",
    ],
    "packed.": [
        "types",
        "drop_block",
        "layers",
        "functional",
        "foreign.",
        "means",
        "kernels",
        "notes",
        "packed.",
    ],
    "inner_loop": [*TENSORS, "task_map", "recompute", "packed."],
    "threshold": ["types"],
    "export.": [
        "types",
        "checks",
        "threshold",
        "copies",
        "digests",
        "files",
        "kernels",
        "layers",
        "foreign.",
        "functional",
        "inputs",
        "export.",
    ],
    "task_model": ["types", "copies", "functional", "kernels"],
    "meta_learner": [
        *LOOPS,
        "arguments",
        "finite_loss",
        "given",
        "labels",
        "low_rank",
        "task_model",
        "threshold",
        "kernels",
        "distribution",
        "readable",
        "replicated",
        "states.",
        "export.",
    ],
    "calibration": ["types", "checks"],
    "paired": ["types"],
    "score_table": ["types", "paired"],
    "scoring": ["types", "checks", "padding", "foreign.", "readable", "meta_learner"],
    "simple_regression": ["types", "scoring"],
    "same_parts": ["types", "functional", "inner_loop", "algorithms."],
    "embeddings": [
        "types",
        "foreign.",
        "functional",
        "task_map",
        "meta_learner",
        "algorithms.",
        "same_parts",
    ],
    "simple_heads": ["types", "foreign.", "padding", "algorithms.", "embeddings", "scoring"],
    "references": [*SCORES, "meta_learner", "algorithms.", "simple_heads", "simple_regression"],
    "evaluation": [*SCORES, "checks", "agreement", "meta_learner", "calibration", "references"],
    "competitors": [*SCORES, "meta_learner", "algorithms.", "simple_heads", "simple_regression"],
    "comparison": [
        *SCORES,
        "checks",
        "agreement",
        "meta_learner",
        "simple_heads",
        "competitors",
        "plots.",
    ],
    "inner_rates": [
        "types",
        "agreement",
        "checks",
        "losses",
        "meta_learner",
        "algorithms.",
        "same_parts",
        "scoring",
        "plots.",
    ],
    "algorithms.": [
        *LOOPS,
        "devices",
        "differentiation",
        "distribution",
        "fast_weights",
        "inner_batches",
        "kernels",
        "labels",
        "moving_statistics",
        "query_batch_norm",
        "svgd",
        "random_weights",
        "meta_learner",
        "algorithms.",
    ],
    "suite": ["types", "checks", "comparison", "meta_learner", "score_table"],
    "unknown": ["types", "calibration", "evaluation", "threshold"],
    "class_changes": ["types", "checks", "copies", "inputs", "task_model", "algorithms."],
    "data.": [
        "types",
        "named_data",
        "saying",
        "choices",
        "checks",
        "digests",
        "files",
        "foreign.",
        "_core",
        "data.",
    ],
    "callbacks": ["types", "states."],
    "pretraining": ["types", "checks", "packed.", "states.", "evaluation", "algorithms.", "data."],
    "public": [
        *PUBLIC,
        *("paired", "references", "reporting.", "callbacks", "classifier", "pretraining"),
        *("differentiation", "svgd", "backend", "suite"),
    ],
    # Imports `public` at once or later; see there.
    "__init__": ["public"],
    # Imported where a picture is asked for, for it takes long.
    "plots.": ["types", "files", "calibration", "plots."],
    "reporting.": [
        *SCORES,
        "agreement",
        "checks",
        "files",
        "calibration",
        "comparison",
        "evaluation",
        "meta_learner",
        "plots.",
        "reporting.",
        "simple_heads",
    ],
    # Programs made of the package; nothing imports them.
    "learner_table": ["types"],
    "setting_values": ["types", "choices", "bounded_json", "learner_table", "named_data"],
    "argument_text": ["types", "choices", "inner_optimizers"],
    "learner_arguments": [
        *("types", "choices", "algorithms.", "argument_text", "arguments", "learner_table"),
        *("meta_learner", "replicated"),
    ],
    "class_lists": ["types", "choices", "setting_values"],
    "runs": [
        "types",
        "choices",
        "bounded_json",
        "files",
        "history",
        "inside",
        "learner_table",
        "locks",
        "meta_learner",
        "setting_values",
        "states.",
    ],
    "networks": [*PUBLIC, "digests", "keras_files", "learner_table", "runs"],
    "run_data": [*PUBLIC, "class_lists", "runs"],
    "training": [
        *(*PUBLIC, "files", "plots.", "pretraining", "runs", "saying"),
        *("history", "learner_arguments", "networks", "run_data"),
    ],
    "samplers": ["types"],
    "search_space": [
        *("types", "choices", "algorithms.", "argument_text", "learner_arguments"),
        *("learner_table", "runs", "samplers", "setting_values"),
    ],
    "tuning": [
        *(*PUBLIC, "files", "inside", "locks", "runs", "training"),
        *("samplers", "search_space"),
    ],
    "formats": ["types", "files", "threshold", "export."],
    "classifier": [*PUBLIC, "digests", "files", "formats", "keras_files"],
    "workers": ["types", "locks"],
    # A program made of the package, as the command is, which starts it.
    "serving.": [
        *PUBLIC,
        "bounded_json",
        "classifier",
        "embeddings",
        "serving.",
    ],
    "cli.": [
        *PUBLIC,
        *("argument_text", "class_lists", "digests", "learner_arguments", "learner_table"),
        *("networks", "reporting.", "search_space"),
        *("runs", "run_data"),
        "setting_values",
        "training",
        "workers",
        "tuning",
        "formats",
        "classifier",
        "saying",
        "serving.",
        "files",
        "history",
        "suite",
        "cli.",
        "__init__",
    ],
    "__main__": ["types", "cli."],
}


def layer(module: str) -> str:
    """`algorithms.maml` belongs to `algorithms.`, `ops` is a layer of its own."""
    package, dot, _ = module.partition(".")
    return package + dot


def modules() -> dict[str, Path]:
    """Every module by its name inside the package; sub-packages have `__init__` as a name too."""
    files = {path.relative_to(PACKAGE): path for path in PACKAGE.rglob("*.py")}
    return {".".join(relative.with_suffix("").parts): path for relative, path in files.items()}


def imported(source: str) -> set[str]:
    """Return the modules of the package that `source` imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {resolve(name) for name in names if name.split(".")[0] == "tfmeta"}
    return found


def resolve(name: str) -> str:
    """`tfmeta.data.load` is a name of `data.__init__`, `tfmeta.data.images` a module."""
    parts = name.split(".")[1:]
    for size in range(len(parts), 0, -1):
        path = PACKAGE.joinpath(*parts[:size])
        if path.with_suffix(".py").exists() or path.with_suffix(".pyi").exists():
            return ".".join(parts[:size])
        if (path / "__init__.py").exists():
            return ".".join([*parts[:size], "__init__"])
    return "__init__"


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_go_one_way(module: str) -> None:
    assert layer(module) in MAY_IMPORT, f"say in MAY_IMPORT where {module} belongs"
    allowed = MAY_IMPORT[layer(module)]
    wrong = {name for name in imported(modules()[module].read_text()) if layer(name) not in allowed}
    assert not wrong, f"{module} may import {allowed}, not {sorted(wrong)}"


def test_the_table_has_no_circle() -> None:
    below: dict[str, set[str]] = {}
    while len(below) < len(MAY_IMPORT):
        ready = [
            name
            for name, allowed in MAY_IMPORT.items()
            if name not in below and set(allowed) - {name, "_core"} <= set(below)
        ]
        assert ready, f"a circle among {sorted(set(MAY_IMPORT) - set(below))}"
        below |= {name: set(MAY_IMPORT[name]) for name in ready}


def test_the_reader_of_imports_sees_them_all() -> None:
    source = (
        "import tfmeta.ops\nfrom tfmeta import data\ndef f():\n  from tfmeta.types import Array"
    )
    assert imported(source) == {"ops", "data.__init__", "types"}
    assert imported("import numpy\nfrom tfmeta import __version__") == {"__init__"}
