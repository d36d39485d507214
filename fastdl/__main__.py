"""`python -m fastdl` is the command `fastdl`."""

from .cli import main

raise SystemExit(main())
