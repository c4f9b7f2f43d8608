"""Shared by all tests: the recorded outputs of the reference, full float32 products, and a compile cache."""

import json
import os
import pathlib
import sys
from importlib.metadata import version

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
    [
        # Programs here are compiled far longer than they run: the training step of the tests takes 37 processor seconds
        # to compile so, and 65 at the default level. (What is in the environment comes later, and wins.)
        "--xla_backend_optimization_level=0",
        # The older way of making loops, which later releases have no more, does that in 23 instead of 41 seconds.
        *(["--xla_cpu_use_fusion_emitters=false"] if version("jaxlib").startswith("0.10.") else []),
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=4",
        # Several devices share two cores here: one may arrive at a collective long after the first, and after 40 s, the
        # default, the process is aborted.
        "--xla_cpu_collective_call_terminate_timeout_seconds=600",
    ]
)

import jax
import jaxtyping
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # data/ and configs/ belong to the checkout, not to the wheel
IN_REPOSITORY = pathlib.Path(__file__).parent / "goldens"
sys.path.insert(0, str(IN_REPOSITORY))  # reference_weights.py

jax.config.update("jax_default_matmul_precision", "highest")  # the reference is exact float32
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # shape_checks.py
CHECKED = ["geometry", "structures", *(f"models.{task}_loss" for task in ("classification", "dense", "detection"))]
jaxtyping.install_import_hook([f"haksnet_jax.{name}" for name in CHECKED], "shape_checks.checked")


# For `jax.jit` where large images are looked at: these programs run longer than they compile.
OPTIMIZED = {"xla_backend_optimization_level": 3}


def pytest_collection_modifyitems(items):
    """Runs of training first: they take longest, and a process that began with them last would be left alone."""
    items.sort(key=lambda item: "training" not in item.path.parts)


class Golden:
    """One recorded fixture: `manifest` (dict), and arrays by name."""

    def __init__(self, folder, name):
        self.folder = folder
        self.manifest = json.loads((folder / f"{name}.json").read_text())
        arrays_path = folder / f"{name}.npz"
        self._arrays = np.load(arrays_path) if arrays_path.exists() else {}

    def __getitem__(self, key):
        return self._arrays[key]

    def __contains__(self, key):
        return key in self._arrays

    def keys(self):
        return list(self._arrays)

    def sampled(self, key, full):
        """The elements of `full` (reference layout, whole array) that the fixture stores of `key`, flat."""
        entry = self.manifest["arrays"][key]
        assert list(np.shape(full)) == entry["shape"], (key, np.shape(full), entry["shape"])
        return np.asarray(full).reshape(-1)[:: entry.get("flat_stride", 1)]

    def compare(self, key, full, rtol, atol):
        """Asserts that `full` (reference layout, whole array) agrees with the stored elements."""
        np.testing.assert_allclose(self.sampled(key, full), self[key].reshape(-1), rtol=rtol, atol=atol, err_msg=key)


def goldens_folder(name):
    """Folder that holds the file `name`: the one of the environment, else the one in the repository, else a skip."""
    candidates = [IN_REPOSITORY]
    if os.environ.get("HAKSNET_GOLDENS"):
        candidates.insert(0, pathlib.Path(os.environ["HAKSNET_GOLDENS"]))
    for folder in candidates:
        if (folder / name).exists():
            return folder
    pytest.skip(f"{name} is in neither tests/goldens nor HAKSNET_GOLDENS (the recorded outputs of the reference)")


@pytest.fixture(scope="session")
def golden():
    """`golden("name")` loads a fixture of the reference, or skips the test where it is not at hand."""
    loaded = {}

    def load(name):
        if name not in loaded:
            loaded[name] = Golden(goldens_folder(f"{name}.json"), name)
        return loaded[name]

    return load


@pytest.fixture(scope="session")
def golden_file():
    """`golden_file("input_image.png")` is the path of a recorded file, or skips the test."""
    return lambda name: goldens_folder(name) / name
