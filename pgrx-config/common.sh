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

# say_cost WHAT FIRST_MINUTES GIGABYTES MINUTES: what it takes, the first time and again, on 2 cores.
say_cost() {
    local free
    say "make $1 takes about $2 min the first time, and $3 GB of disk (packages, target/); $4 min when run again"
    free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1024 / 1024) }')
    if [ ! -e target ] && [ "$free" -lt "$3" ]; then
        say "WARNING: only $free GB are free here"
    fi
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

# keep_majors_at_hand: after setup. Those of majors that have no server here go to left_out.
keep_majors_at_hand() {
    local major wanted=("${majors[@]}")
    majors=()
    left_out=()
    for major in "${wanted[@]}"; do
        if server "$major" >/dev/null; then majors+=("$major"); else left_out+=("$major"); fi
    done
    [ ${#majors[@]} -gt 0 ] || die "no server of PostgreSQL ${wanted[*]} can be had here" \
        "why is said above; an installation of your own, headers included, can be put at" \
        "target/postgres/<major>/{bin,lib,share,include}"
}

# why_left_out MAJOR: as setup found.
why_left_out() { cat "target/left_out/$1" 2>/dev/null || echo "there is no server of it here"; }

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

# lacks_icu PG_CONFIG: the server was built with ICU, whose headers its own ones include
# (pg_locale.h, which pgrx reads) and Debian's package of them does not bring.
lacks_icu() {
    local flags
    grep -q '^#define USE_ICU 1' "$("$1" --includedir-server)/pg_config.h" || return
    read -ra flags <<<"$("$1" --cppflags)"
    ! cc -E "${flags[@]}" -x c - <<<'#include <unicode/ucol.h>' >/dev/null 2>&1
}

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

# use_own_libraries TREE: its programs find the libraries, the C library among them, that lie in
# TREE/libs. They are found by absolute paths, so a copy needs it again.
use_own_libraries() {
    local program loader
    loader=$(echo "$1"/libs/ld-linux*.so.*)
    for program in "$1"/bin/*; do
        if patchelf --print-interpreter "$program" >/dev/null 2>&1; then
            # An rpath, not a runpath: it holds for the libraries that the libraries need.
            patchelf --set-interpreter "$loader" --force-rpath --set-rpath "$1/libs" "$program"
        fi
    done
}

# has_room_for_data DIR: a file system in memory, with room there and memory left besides. Scripts
# are run from it.
has_room_for_data() {
    local gigabytes=4 free available
    [ "$(stat -f -c %T "$1" 2>/dev/null)" = tmpfs ] && [ -w "$1" ] || return
    ! grep -qE "^[^ ]+ $1 tmpfs [^ ]*noexec" /proc/mounts || return
    free=$(df -Pk "$1" | awk 'NR == 2 { print int($4 / 1024 / 1024) }')
    available=$(awk '$1 == "MemAvailable:" { print int($2 / 1024 / 1024) }' /proc/meminfo)
    [ "$free" -ge $gigabytes ] && [ "$available" -ge $((gigabytes * 2)) ]
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

# need_rust: a compiler that does, or the way to one. cargo_options are what cargo must be told.
cargo_options=(--locked)
need_rust() {
    local found wanted remedy="install Rust with rustup (https://rustup.rs)"
    has_cargo || die "cargo is not on $(id -un)'s PATH" "$remedy, or add its bin directory to PATH"
    found=$(rustc --version) || die "rustc cannot be run: without it cargo builds nothing" "$remedy"
    found=${found#rustc }
    found=${found%%[ -]*}
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    older "$found" "$wanted" || return 0
    if older "$found" "$RUST_KNOWN_TO_DO"; then
        command -v rustup >/dev/null && remedy="rustup update"
        die "needs Rust $wanted, found $found: $remedy"
    fi
    cargo_options+=(--ignore-rust-version)
    # Once, however many of the scripts are run by one of them.
    [ -n "${SAID_THAT_RUST_DOES:-}" ] ||
        say "Rust $found is older than the $wanted that pgrx asks for, but known to do: cargo gets --ignore-rust-version"
    export SAID_THAT_RUST_DOES=1
}

# older THIS THAT: versions.
older() { [ "$1" != "$2" ] && [ "$(printf '%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }

need_compiler() {
    command -v cc >/dev/null || die "there is no C compiler to link with" "Debian, Ubuntu: apt-get install $APT_COMPILER"
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
