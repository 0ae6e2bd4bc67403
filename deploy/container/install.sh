#!/bin/sh
# Installs the source in $1, with what a server needs, into the environment $2.
# The container file runs this script, and so does a test.
set -eu
source=$1
target=$2
python3 -m venv "$target"
"$target/bin/pip" install --quiet --no-cache-dir --disable-pip-version-check \
  --constraint "$source/constraints.txt" "${source}[server,postgres,traces]"
"$target/bin/python" -c '
import importlib.util, sys
sys.exit("torch was installed too: the server must not need it" if importlib.util.find_spec("torch") else 0)'
"$target/bin/flerm" serve --help > /dev/null
