# shellcheck shell=bash
# What the scripts beside it share. They source it at the root of the checkout and stay there.

. pgrx-config/versions

# The scripts must know where cargo puts what it builds, whatever the user's own settings.
export CARGO_TARGET_DIR=$PWD/target

say() { printf '==> %s\n' "$*"; }

# die WHAT [REMEDY...]: one line each.
die() {
    printf 'error: %s\n' "$1" >&2
    shift
    [ $# -eq 0 ] || printf '       %s\n' "$@" >&2
    exit 1
}

# read_majors: majors are those that MAJORS asks for, each once and the newest last; all if it is not set.
read_majors() {
    local asked major
    read -ra asked <<<"${MAJORS:-$ALL_MAJORS}"
    [ ${#asked[@]} -gt 0 ] || die "MAJORS is empty" "leave it out for all majors: $ALL_MAJORS"
    for major in "${asked[@]}"; do
        [[ " $ALL_MAJORS " == *" $major "* ]] ||
            die "MAJORS: there is no major '$major' here" "some of these, with spaces between: $ALL_MAJORS"
    done
    majors=()
    for major in $ALL_MAJORS; do
        [[ " ${asked[*]} " != *" $major "* ]] || majors+=("$major")
    done
}

# pg_major PG_CONFIG: the server's major, once that is known to be one we build for.
pg_major() {
    local version major supported
    version=$("$1" --version 2>/dev/null) ||
        die "PG_CONFIG: '$1' cannot be run" \
            "name the pg_config of your server, as in PG_CONFIG=/usr/lib/postgresql/16/bin/pg_config"
    [[ $version =~ ^PostgreSQL\ ([0-9]+) ]] ||
        die "PG_CONFIG: '$1' is not the pg_config of a PostgreSQL server: it says '${version%%$'\n'*}'"
    major=${BASH_REMATCH[1]}
    # A major is supported when the crate has a feature for it.
    supported=$(sed -n 's/^pg\([0-9]*\) *=.*/\1/p' Cargo.toml | tr '\n' ' ')
    [[ " $supported" == *" $major "* ]] ||
        die "PostgreSQL $major is not supported ('$1' says '$version')" "supported majors: $supported"
    printf '%s\n' "$major"
}

has_headers() { [ -f "$("$1" --includedir-server)/postgres.h" ]; }

# server MAJOR: pg_config of the installation that tests of this major build against and
# copy. One put under target/postgres by hand comes before the system's.
server() {
    local bindir
    for bindir in "$PWD/target/postgres/$1/bin" "/usr/lib/postgresql/$1/bin"; do
        if [ -x "$bindir/postgres" ] && [ -x "$bindir/pg_config" ] && has_headers "$bindir/pg_config"; then
            echo "$bindir/pg_config"
            return
        fi
    done
    return 1
}

exists() { local path; for path; do [ -e "$path" ] && return; done; return 1; }

# bindgen needs libclang and the headers that clang itself brings.
has_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] || {
        exists /usr/lib/llvm-*/lib/libclang[.-]*so* /usr/lib64/libclang.so* /usr/lib/*/libclang[.-]*so* &&
            exists /usr/lib/llvm-*/lib/clang/*/include/stddef.h /usr/lib*/clang/*/include/stddef.h
    }
}

has_cargo() {
    # rustup's directory is on the PATH of login shells only.
    command -v cargo >/dev/null || PATH=${HOME:-}/.cargo/bin:$PATH
    command -v cargo >/dev/null
}

need_cargo() {
    has_cargo || die "cargo is not on $(id -un)'s PATH" "install Rust (rustup), or add its bin directory to PATH"
}

has_venv() { python3 -c 'import ensurepip, venv' 2>/dev/null; }

# venv_with MODULE PACKAGE...: target/<first package> has them all, once MODULE can be imported there.
venv_with() {
    local module=$1 venv=target/$2
    shift
    if ! "$venv/bin/python" -c "import $module" 2>/dev/null; then
        say "fetching $* from PyPI, into $venv"
        rm -rf "$venv"
        python3 -m venv "$venv"
        "$venv/bin/python" -m pip --disable-pip-version-check install --quiet --no-cache-dir \
            --only-binary=:all: "$@" ||
            die "$module could not be had from PyPI" "check the network and pip's settings (pip config list)"
    fi
}

# install_files BUILD_DIR PKGLIBDIR EXTENSION_DIR
install_files() {
    # install replaces a file rather than writing into it: a running server has the old one mapped.
    install -m 755 "$1/slot_self_heal.so" "$2/"
    install -m 644 slot_self_heal.control sql/slot_self_heal--*.sql "$3/"
}

# installed_files PKGLIBDIR EXTENSION_DIR: what install_files put there, of whatever version, one a line.
installed_files() {
    local file
    for file in "$1/slot_self_heal.so" "$2/slot_self_heal.control" "$2"/slot_self_heal--*.sql; do
        if [ -e "$file" ]; then printf '%s\n' "$file"; fi
    done
}
