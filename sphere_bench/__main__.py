"""`python -m sphere_bench`: the console script without an installation."""

from sphere_bench.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
