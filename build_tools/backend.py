"""setuptools' build backend, with the environment's own torch visible from inside an isolated build.

So a plain `pip install .` compiles against the torch that will load the result, and downloads no second one.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path


def _pythons():
    yield os.environ.get("FASTDL_PYTHON")
    yield sys.executable
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        yield os.path.join(folder, "python")
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if variable in os.environ:
            yield os.path.join(os.environ[variable], "bin", "python")


def _site_packages_with_torch():
    ask = "import sys, importlib.util as u; s = u.find_spec('torch'); print(sys.version_info[:2], s and s.origin or '')"
    for python in dict.fromkeys(filter(None, _pythons())):
        if not os.access(python, os.X_OK):
            continue
        # -I: see past the PYTHONPATH by which pip isolates a build
        answer = subprocess.run([python, "-I", "-c", ask], capture_output=True, text=True).stdout.strip()
        prefix = f"{sys.version_info[:2]} "
        if answer.startswith(prefix) and len(answer) > len(prefix):
            return str(Path(answer[len(prefix) :]).parents[1])
    return None


def _find_torch():
    if importlib.util.find_spec("torch"):
        return True
    site_packages = _site_packages_with_torch()
    if site_packages is None:
        return False
    sys.path.append(site_packages)
    # the extension build runs in this process, its children inherit the path
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), site_packages]))
    return True


_torch_found = _find_torch()

from setuptools.build_meta import *  # noqa: E402, F403


def get_requires_for_build_wheel(config_settings=None):
    return [] if _torch_found else ["torch>=2.11"]


get_requires_for_build_editable = get_requires_for_build_wheel


def get_requires_for_build_sdist(config_settings=None):
    return get_requires_for_build_wheel(config_settings)
