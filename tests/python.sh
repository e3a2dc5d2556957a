# Sourced by the scripts of this project: `environment FOLDER EXTRA` makes a virtual environment of this project and its
# EXTRA once, with nothing needed on the machine but a Python 3.10+, and sets $bin to its programs. Run from the root.

find_python() {
    for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python3.10 python; do
        [ -n "$candidate" ] || continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "Python 3.10 or newer is needed, and none was found on PATH; set PYTHON to one." >&2
    return 1
}

environment() {
    folder=$1 extra=$2
    bin=$folder/bin
    wanted=$(cat setup.py | cksum)
    if [ "$(cat "$folder/complete" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    python=$(find_python) || return 1
    echo "Preparing $folder (once; some minutes where nothing is cached) ..." >&2
    rm -rf "$folder"
    if ! "$python" -m venv "$folder" >/dev/null 2>&1; then
        # Debian's Python has venv in a package of its own; virtualenv brings all that it needs.
        "$python" -m pip install --quiet --user virtualenv && "$python" -m virtualenv --quiet "$folder" || {
            echo "No virtual environment can be made with $python: install its venv module (python3-venv)." >&2
            return 1
        }
    fi
    "$bin/python" -m pip install --quiet --disable-pip-version-check uv || return 1
    "$bin/uv" pip install --quiet --python "$bin/python" --editable ".[$extra]" || return 1
    echo "$wanted" >"$folder/complete"
}
