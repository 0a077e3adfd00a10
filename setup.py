"""The C++ extensions, nothing else: all metadata is in pyproject.toml."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

NO_COMPILER = """tfmeta has a C++17 extension, and no C++ compiler was found{tried}.
Install one and try again:
  Debian, Ubuntu   sudo apt-get install g++
  Fedora, RHEL     sudo dnf install gcc-c++
  macOS            xcode-select --install
A compiler at another place is named by the environment variable CXX."""


class BuildExtension(build_ext):
    """`build_ext` that says what to install where there is no compiler."""

    def build_extensions(self) -> None:
        commands = [
            getattr(self.compiler, name, None) for name in ("compiler_so", "compiler_so_cxx")
        ]
        missing = [command[0] for command in commands if command and not shutil.which(command[0])]
        if missing:
            raise CompileError(NO_COMPILER.format(tried=f" (tried `{missing[-1]}`)"))
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        if ext.name == TENSORFLOW_OPS and sys.platform == "linux":
            ext.extra_link_args = [*ext.extra_link_args, self.tensorflow_stub()]
        super().build_extension(ext)

    def tensorflow_stub(self) -> str:
        """Return the path of an empty library under TensorFlow's name, to link with.

        When it is loaded, the library of that name is TensorFlow's own, which is there already: so
        TensorFlow is not needed to build, and what is built belongs to none of its releases.
        """
        folder = Path(self.build_temp)
        folder.mkdir(parents=True, exist_ok=True)
        used = sorted(set(re.findall(r"\bTF_\w+(?=\()", Path("csrc/tf_api.h").read_text())))
        source = folder / "tensorflow_stub.c"
        source.write_text("".join(f"void {name}(void) {{}}\n" for name in used))
        library = folder / "libtensorflow_framework.so.2"
        self.compiler.link_shared_object(
            self.compiler.compile([str(source)], output_dir=str(folder)),
            str(library),
            extra_postargs=[f"-Wl,-soname,{library.name}"],
        )
        return str(library)


TENSORFLOW_OPS = "tfmeta._tf_ops"
flags = ["-O3", "-ffp-contract=off", "-pthread"]
links = ["-pthread"]
if sanitizers := os.environ.get("TFMETA_SANITIZE"):
    # `make sanitize`: "address,undefined" or "thread".
    watched = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-g"]
    flags, links = [*flags, *watched], [*links, *watched]

HEADERS = sorted(str(path) for path in Path("csrc").glob("*.h"))


def sources(*names: str) -> list[str]:
    """Return the paths of some of the C++ files."""
    return [f"csrc/{name}.cc" for name in names]


extensions = [
    Pybind11Extension(
        "tfmeta._core",
        sources("augmentation", "bindings", "buffers", "distances", "episodes", "gather"),
        depends=HEADERS,
        cxx_std=17,
        extra_compile_args=flags,
        extra_link_args=links,
    ),
    # Where nothing finds the library all works, with TensorFlow's own operations.
    Extension(
        TENSORFLOW_OPS,
        sources("batch_norm", "convolution", "distances", "max_pool", "tf_ops"),
        depends=HEADERS,
        language="c++",
        # Unlike drawn episodes, products need not be the same to the last bit everywhere.
        extra_compile_args=[*flags, "-ffp-contract=fast", "-std=c++17"],
        # On a Mac, what is missing is looked up in all libraries that are loaded.
        extra_link_args=links
        + (["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []),
    ),
]

# As many files at once as there are cores.
ParallelCompile("MAX_JOBS", default=0).install()
setup(ext_modules=extensions, cmdclass={"build_ext": BuildExtension})
