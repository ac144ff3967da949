#!/bin/sh
# Ten minutes on a card: the GPU tests, then the benchmark; one JSON with all of it, and the tables of the document.
#
#   tests/gpu/day.sh [DIRECTORY]     from a set-up checkout (make test, or pip install -e '.[dev]')
#
# Leaves DIRECTORY/day.json (runs/gpu-day unless named). PYTHON= names the interpreter, DOCUMENT= another page than
# docs/PERFORMANCE.md. DAY_DEVICE=cpu tries everything on a CPU, tiny. Ends with 1 where a test or an output was wrong.
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
out=${1:-runs/gpu-day}
device=${DAY_DEVICE:-cuda}
mkdir -p "$out"
rm -f "$out/tests.xml" "$out/bench.json" "$out/day.json"

# 20 s of timing in each of the four cells: with what is compared and loaded before, two to three minutes on a card.
size="--budget 20"
[ "$device" = cpu ] && size="--tiny --model wav2vec2"

status=0
$python -m pytest tests/gpu -m gpu -o junit_family=xunit1 --junitxml="$out/tests.xml" || status=1
# shellcheck disable=SC2086  # the options are several words
$python -m tests.benchmarks --device "$device" --out "$out" $size || status=1
$python -m tests.gpu.summary "$out" "${DOCUMENT:-docs/PERFORMANCE.md}" || status=1
exit $status
