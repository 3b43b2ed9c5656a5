#!/bin/sh
# Installs a wheel as users do, into an environment of its own and away from the sources, and runs it.
# Usage: scripts/smoke.sh WHEEL
# INSTALL is what installs into env/ in the current folder, where pip with our constraint does not suit.
set -eu
wheel=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
constraints=$(cd "$(dirname "$0")/.." && pwd)/constraints-cpu.txt
install=${INSTALL:-env/bin/python -m pip install --quiet --disable-pip-version-check -c $constraints}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
$install "$wheel[cpu]"
env/bin/harness --version
env/bin/harness list methods
HARNESS_HOME=$folder/home env/bin/harness run method=mmin,zero_fill dataset=synthetic trainer.epochs=1
HARNESS_HOME=$folder/home env/bin/harness report --out report
test -s report/report.html || test -s report/index.html
