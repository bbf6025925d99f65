#!/usr/bin/env bash
# Installs SearchRL with training and serving, and all it needs, at the versions the project is tested with.
#
#   ./install.sh                    into venv/ here; then: source venv/bin/activate
#   ./install.sh --active           into the environment that is active, as after: conda activate searchr1
#
# PYTHON names another interpreter (3.11 or newer), TORCH_INDEX_URL a place with a build of torch for your
# CUDA, EXTRAS more parts, as in EXTRAS=faiss,parquet.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ./settings.sh

case "${1:-}" in
  -h | --help) show_help ;;
  --active)
    [[ -n ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} ]] || die "--active: no environment is active; activate one first"
    ;;
  "") ;;
  *) die "$1: no such flag; see install.sh --help" ;;
esac
root="$(cd ../.. && pwd)"
[[ -f $root/pyproject.toml && -f $root/constraints.txt ]] \
  || die "$root: not the SearchRL repository; keep this directory in deployments/ of a checkout"
python="${PYTHON:-python3}"
command -v "$python" > /dev/null || die "PYTHON=$python: no such program; Python 3.11 or newer is needed"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
  || die "$("$python" --version) is too old: set PYTHON to Python 3.11 or newer"

if [[ ${1:-} != --active ]]; then
  [[ -x venv/bin/python ]] || "$python" -m venv venv
  python=venv/bin/python
fi
pip=("$python" -m pip install --disable-pip-version-check -c "$root/constraints.txt")
# By its exact version and first: as a dependency it could resolve to another build.
"${pip[@]}" "$(grep '^torch==' "$root/constraints.txt")" ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"}
"${pip[@]}" --editable "${root}[torch,serve${EXTRAS:+,$EXTRAS}]"
"$python" -m searchrl --version
if [[ ${1:-} == --active ]]; then
  echo "installed: next, ./run.sh"
else
  echo "installed: next, source venv/bin/activate and ./run.sh"
fi
