"""The C++ extension, nothing else: all metadata is in pyproject.toml."""

from __future__ import annotations

import shutil
import sys

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

NO_COMPILER = """tfmeta has a C++17 extension, and no C++ compiler was found{tried}.
Install one and try again:
  Debian, Ubuntu   sudo apt-get install g++
  Fedora, RHEL     sudo dnf install gcc-c++
  macOS            xcode-select --install
  Windows          "Desktop development with C++" of the Visual Studio Build Tools
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


flags = ["/O2"] if sys.platform == "win32" else ["-O3", "-ffp-contract=off", "-pthread"]

setup(
    ext_modules=[
        Pybind11Extension(
            "tfmeta._core",
            [f"csrc/{name}.cc" for name in ("bindings", "buffers", "episodes", "gather")],
            depends=[f"csrc/{name}.h" for name in ("buffers", "episodes", "gather", "parallel")],
            cxx_std=17,
            extra_compile_args=flags,
            extra_link_args=[] if sys.platform == "win32" else ["-pthread"],
        )
    ],
    cmdclass={"build_ext": BuildExtension},
)
