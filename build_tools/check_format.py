"""clang-format over csrc: `check_format.py` fails where a file would change, `--fix` changes it."""

import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}


def main() -> int:
    files = [str(p) for p in sorted((ROOT / "csrc").rglob("*")) if p.suffix in SUFFIXES]
    files += [str(p) for p in sorted((ROOT / "tests").rglob("*")) if p.suffix in SUFFIXES]
    mode = ["-i"] if "--fix" in sys.argv[1:] else ["--dry-run", "--Werror"]
    clang_format = str(Path(sysconfig.get_path("scripts"), "clang-format"))
    return subprocess.run([clang_format, *mode, *files]).returncode


if __name__ == "__main__":
    sys.exit(main())
