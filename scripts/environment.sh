#!/bin/sh
# Finds a Python that can make the environment, or says what to install; then hands over to environment.py.
# PYTHON=/path/to/python3 names one.
set -u
which=${1:-}
cd "$(dirname "$0")/.." || exit 2
unset PYTHONHOME PYTHONPATH

stop() {
    printf 'error[ENVIRONMENT]: %s\n' "$1" >&2
    exit 2
}

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

found=""
seen=""
if [ -n "${PYTHON:-}" ]; then
    set -- "$PYTHON"
else
    set -- python3 python3.13 python3.12 python3.11
fi
for candidate in "$@"; do
    if new_enough "$candidate"; then
        found="$candidate"
        break
    fi
    version=$("$candidate" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) || version="missing"
    seen="$seen${seen:+, }$candidate is $version"
done
[ -n "$found" ] || stop "Python 3.11 or newer is needed ($seen). Install one: Debian, Ubuntu: sudo apt-get install python3 python3-venv; Fedora: sudo dnf install python3; macOS: brew install python. Or name one: make PYTHON=/path/to/python3 demo"

"$found" -c 'import ensurepip, venv' >/dev/null 2>&1 || {
    minor=$("$found" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    stop "$found ($minor) cannot make virtual environments. Install the missing part: Debian, Ubuntu: sudo apt-get install python$minor-venv (or python3-venv); other systems: a Python with venv and ensurepip. Or name another: make PYTHON=/path/to/python3 demo"
}

exec "$found" scripts/environment.py $which
