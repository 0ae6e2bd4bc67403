#!/bin/sh
# Installs the source in $1, with what a server needs, into the environment $2. Every file that pip
# fetches must have a hash that stands in requirements.txt or build-requirements.txt.
# The container file runs this script, and so does a test.
set -eu
source=$1
target=$2
here=$source/deploy/container
built=$(mktemp -d)
trap 'rm -rf "$built"' EXIT
install() {
  "$1/bin/pip" install --quiet --no-cache-dir --disable-pip-version-check --require-hashes --requirement "$2"
}

python3 -m venv "$built/env"
install "$built/env" "$here/build-requirements.txt"
"$built/env/bin/pip" wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation \
  --wheel-dir "$built/wheels" "$source"

python3 -m venv "$target"
install "$target" "$here/requirements.txt"
"$target/bin/pip" install --quiet --disable-pip-version-check --no-index --no-deps "$built"/wheels/flerm-*.whl
"$target/bin/pip" check --disable-pip-version-check
"$target/bin/python" -c '
import importlib.util, sys
sys.exit("torch was installed too: the server must not need it" if importlib.util.find_spec("torch") else 0)'
"$target/bin/flerm" serve --help > /dev/null
