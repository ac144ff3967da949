#!/bin/sh
# Ten minutes on a card, as tests/gpu/day.py says.
#
#   tests/gpu/day.sh [DIRECTORY]     from a set-up checkout (make test, or pip install -e '.[dev]')
#
# Leaves DIRECTORY/day.json (runs/gpu-day unless named). PYTHON= names the interpreter, DOCUMENT= another page than
# docs/PERFORMANCE.md. DAY_DEVICE=cpu tries everything on a CPU, tiny.
set -eu
cd "$(dirname "$0")/../.."
exec "${PYTHON:-.venv/bin/python}" -m tests.gpu.day "${1:-runs/gpu-day}" "${DOCUMENT:-docs/PERFORMANCE.md}"
