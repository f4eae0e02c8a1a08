"""Builds wheels that carry compiled kernels, where there is a C compiler; all else stands in pyproject.toml."""

import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from automc.kernels import prebuilt  # noqa: E402  (of the standard library alone)


class Build(build_py):
    """Compiles the kernels into the folder that becomes the wheel; never for an editable install."""

    def run(self) -> None:
        """As setuptools, and then the kernels."""
        super().run()
        if self.editable_mode:
            return
        shutil.rmtree(self.libraries, ignore_errors=True)  # of an earlier build
        made = prebuilt.make(self.libraries)
        missing = [name for name, good in made.items() if not good]
        if not made:
            self.warn("no C compiler was found: the wheel carries no compiled kernels, and suits every platform")
        elif missing:
            self.warn(f"the compiler cannot make {', '.join(missing)}: the wheel does without")

    @property
    def libraries(self) -> Path:
        """Where they go."""
        return Path(self.build_lib) / prebuilt.FOLDER.relative_to(ROOT)


class Wheel(bdist_wheel):
    """Is for one platform where it carries kernels, and for any Python there: they are loaded by ctypes."""

    def run(self) -> None:
        """As setuptools, once it is known what the wheel will hold."""
        if not self.skip_build:
            self.run_command("build")
        carries = any(self.get_finalized_command("build_py").libraries.glob("*.so"))
        self.root_is_pure = not carries
        self.distribution.has_ext_modules = lambda: carries  # which decides where setuptools puts everything
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        """Python, ABI and platform."""
        return (self.python_tag, "none", super().get_tag()[2])


setup(cmdclass={"build_py": Build, "bdist_wheel": Wheel})
