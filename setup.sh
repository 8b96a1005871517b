#!/bin/sh
# Makes the virtual environment .venv from the locked requirements, and does
# nothing in well under a second where it is as it should be.
#
#   ./setup.sh         what `make up` needs
#   ./setup.sh --dev   also what tests and lint need
#
# A stamp beside each installed lock file is written last, so an install that
# was killed is seen and mended by the next run.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
cd "$root"

say() { printf '%s\n' "$*" >&2; }
fail() {
    say "setup: $1"
    [ -z "${2:-}" ] || say "  to mend it: $2"
    exit 1
}

locks=requirements.txt
case "${1:-}" in
    '') ;;
    --dev) locks='requirements.txt requirements-dev.txt' ;;
    *) fail "unknown argument: $1" 'call it without one, or with --dev' ;;
esac

venv=$root/.venv
# present from the first change to the virtual environment until the last
unfinished=$venv/.setup-unfinished

# with the folder's name, since console scripts hold it: a moved checkout is installed anew
fingerprint() { { printf '%s\n' "$venv"; cat -- "$1"; } | sha256sum; }
stamp() { printf '%s/.setup-%s' "$venv" "${1%.txt}"; }
as_locked() { [ -f "$(stamp "$1")" ] && [ "$(cat -- "$(stamp "$1")")" = "$(fingerprint "$1")" ]; }
venv_runs() { "$venv/bin/python" -c '' 2>/dev/null; }
venv_is_of_this_folder() { grep -qF "$venv/bin/python" "$venv/bin/pip" 2>/dev/null; }

all_as_locked() {
    [ ! -e "$unfinished" ] && venv_runs || return 1
    for lock in $locks; do
        as_locked "$lock" || return 1
    done
}

all_as_locked && exit 0

# one at a time: `make up` and `make test` may start together
if [ -z "${DERP_RELAYS_SETUP_LOCKED:-}" ] && command -v flock >/dev/null; then
    export DERP_RELAYS_SETUP_LOCKED=1
    code=0
    flock --nonblock --conflict-exit-code 75 "$root/setup.sh" "$root/setup.sh" "$@" || code=$?
    if [ "$code" = 75 ]; then
        say 'setup: another setup is at work here; waiting for it'
        code=0
        flock --timeout 1800 --conflict-exit-code 75 "$root/setup.sh" "$root/setup.sh" "$@" || code=$?
        [ "$code" != 75 ] || fail 'another setup has been at work for half an hour' 'end it, then run this again'
    fi
    exit "$code"
fi

find_python() {
    for python in python3 python3.14 python3.13 python3.12 python3.11; do
        if command -v "$python" >/dev/null && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            # the interpreter itself: a version manager's shim may point elsewhere tomorrow
            "$python" -c 'import sys; print(sys.executable)'
            return 0
        fi
    done
    return 1
}

# install Debian packages as root, after saying so; else say the command
install_packages() {
    reason=$1
    shift
    if ! command -v apt-get >/dev/null; then
        fail "$reason" "install $* with this system's package manager, then run it again"
    elif [ "$(id -u)" != 0 ]; then
        fail "$reason" "sudo apt-get update && sudo apt-get install -y $*    (then run it again)"
    fi
    say "setup: $reason; installing $* with apt-get"
    log=$(mktemp)
    if ! { DEBIAN_FRONTEND=noninteractive timeout 300 apt-get -qq -o Acquire::Retries=2 update &&
        DEBIAN_FRONTEND=noninteractive timeout 900 apt-get -qq -y -o DPkg::Lock::Timeout=120 \
            --no-install-recommends install "$@"; } >"$log" 2>&1; then
        tail -n 15 "$log" >&2
        rm -f "$log"
        fail "apt-get could not install $*" 'see its last lines above; check the network, then run it again'
    fi
    rm -f "$log"
}

if ! python=$(find_python); then
    command -v python3 >/dev/null || install_packages 'there is no Python' python3 python3-venv
    python=$(find_python) || fail 'Python 3.11 or newer is needed, and none is on PATH' \
        'install one: Debian 12, Ubuntu 24.04 and later have it as python3; on Ubuntu 22.04: sudo apt-get install python3.11 python3.11-venv'
fi

# Debian and Ubuntu leave the venv module's ensurepip to a package of its own
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    install_packages "$python has no venv module" "python$version-venv"
fi

if [ -e "$unfinished" ] || ! venv_runs || ! venv_is_of_this_folder || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1 ||
    ! "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    say "setup: making .venv with $("$python" --version)"
    mkdir -p "$venv"
    : >"$unfinished"
    # --clear would remove the mark along with the rest, and a kill would go unseen
    find "$venv" -mindepth 1 -maxdepth 1 ! -path "$unfinished" -exec rm -rf {} +
    "$python" -m venv "$venv" || fail "$python -m venv failed" 'see its message above'
fi

: >"$unfinished"
for lock in $locks; do
    as_locked "$lock" && continue
    say "setup: installing $lock (half a minute or so)"
    rm -f "$(stamp "$lock")"
    # --foreground: Ctrl-C must reach pip too
    timeout --foreground 1800 "$venv/bin/python" -m pip install --disable-pip-version-check --no-input --quiet \
        --retries 3 --timeout 30 --require-hashes --requirement "$lock" ||
        fail "pip could not install $lock" 'see its message above (no network, or a full disk?), then run it again'
    fingerprint "$lock" >"$(stamp "$lock").new"
    mv -f "$(stamp "$lock").new" "$(stamp "$lock")"
done
rm -f "$unfinished"
