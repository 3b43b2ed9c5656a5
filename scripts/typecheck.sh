#!/bin/sh
# Type-checks the package as it is imported: methods/, datasets/, … live under `harness`, which type checkers do not
# see in an editable install, so mypy runs over a tree of links with that shape.
# Usage: scripts/typecheck.sh MYPY [ARGUMENT…]
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
mypy=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
shift
tree=$root/build/typecheck
mkdir -p "$tree/harness"
find "$tree/harness" -mindepth 1 -maxdepth 1 -type l -exec rm {} +
for entry in "$root"/harness/*; do
  name=$(basename "$entry")
  [ "$name" = __pycache__ ] || ln -s "../../../harness/$name" "$tree/harness/$name"
done
for folder in methods datasets protocols reports presets; do
  ln -s "../../../$folder" "$tree/harness/$folder"
done
# The example package of docs/plugins.md shows how plugins are typed.
ln -sfn ../../tests/plugin_package/src/harness_wine "$tree/harness_wine"
cd "$tree"
exec "$mypy" --config-file "$root/pyproject.toml" -p harness -p harness_wine "$@"
