# Writes the directory or file SANDHOLD_ROOT to stdout: a line "sandhold-pack KIND HOW", and behind it a tar archive.
# KIND is `directory` or `file`; HOW is `gnu zstd`, `zstd` or `none`: by GNU tar, and compressed, or not. Else the line
# says why there is nothing: `missing`, `special`, or `failed REASON`. Ends with tar's exit code; what tar says of entries
# is on stderr.
#
# One a line: SANDHOLD_NAMES, that are left out wherever they are; SANDHOLD_PATHS, left out at the top; and, if there are
# any, SANDHOLD_OPERANDS, the only paths that are looked at. SANDHOLD_HARD_LINKS is `keep` or `copy`: with `copy` each
# name has its content, where tar can do that.

LC_ALL=C
export LC_ALL
newline='
'
say() { printf 'sandhold-pack %s\n' "$1"; }
refuse() {
    say "$1"
    exit 0
}

CDPATH=
root=$SANDHOLD_ROOT
if [ -d "$root" ]; then
    [ -r "$root" ] && cd -- "$root" || refuse 'failed Permission denied'
    kind=directory
    only=.
elif [ -e "$root" ] && [ ! -f "$root" ]; then
    refuse special
else
    why=$( (exec <"$root") 2>&1) || case $why in *'o such file'*) refuse missing ;; *) refuse "failed $why" ;; esac
    # A link that was asked for is followed. The x keeps a newline at the end of the name.
    if [ -L "$root" ]; then
        root=$(readlink -f "$root" && printf x) || refuse missing
        root=${root%?x}
    fi
    cd -- "${root%/*}/" || refuse missing
    kind=file
    only=./${root##*/}
fi

# Whether $1 is there, and no link on the way to it leads elsewhere.
is_inside() {
    rest=$1
    way=.
    while :; do
        way=$way/${rest%%/*}
        case $rest in */*) rest=${rest#*/} ;; *) break ;; esac
        [ ! -L "$way" ] || return 1
    done
    [ -e "$1" ] || [ -L "$1" ]
}

set -f
set -- -cf -
gnu=
if tar --version 2>/dev/null | grep -q 'GNU tar'; then
    gnu='gnu '
    # Headers without an owner, and without the bits that change who runs a file.
    set -- --owner=0 --group=0 --numeric-owner --mode=u-s,g-s,o-t "$@"
    set -- --format=gnu --sparse --quoting-style=escape --quote-chars=: -b 128 "$@"
    [ "$SANDHOLD_HARD_LINKS" = keep ] || set -- --hard-dereference "$@"
fi
if [ $kind = directory ]; then
    IFS=$newline
    if tar -cf - --exclude=none /dev/null >/dev/null 2>&1; then
        for each in $SANDHOLD_NAMES; do set -- "$@" "--exclude=$each"; done
        for each in $SANDHOLD_PATHS; do set -- "$@" "--exclude=./$each"; done
    fi
    if [ "$SANDHOLD_OPERANDS" ]; then
        only=
        for each in $SANDHOLD_OPERANDS; do
            is_inside "$each" && set -- "$@" "./$each" && only=$each
        done
    else
        set -- "$@" .
    fi
    unset IFS
else
    set -- "$@" "$only"
fi

# The archive, to stdout. Without an operand it is an empty one.
pack() {
    if [ "$only" ]; then tar "$@"; else dd if=/dev/zero bs=1024 count=1 2>/dev/null; fi
}

if zstd -q -1 -T0 -c </dev/null >/dev/null 2>&1; then
    say "$kind ${gnu}zstd"
    exec 4>&1
    code=$({ { pack "$@" 3>&- 4>&- && printf 0 >&3 || printf %s $? >&3; } | zstd -q -1 -T0 -c >&4 3>&- 4>&-; } 3>&1)
    exit "$code"
fi
say "$kind none"
pack "$@"
