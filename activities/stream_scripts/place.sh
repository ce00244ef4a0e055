# Puts stdin in the place of the file SANDHOLD_TARGET, in one step once it is whole; with the mode SANDHOLD_MODE (octal),
# else that of the file before, else 644. Folders above it are made, a link is followed. Ends with 75 when the stream broke
# off; what is there stays then, as it does when anything fails, which is told on stderr.

LC_ALL=C
export LC_ALL
umask 022
target=$SANDHOLD_TARGET
if [ -L "$target" ]; then
    target=$(readlink -f "$target" && printf x) || exit 1
    target=${target%?x}
fi
if [ -d "$target" ]; then
    echo 'Is a directory' >&2
    exit 1
fi
if [ -e "$target" ] && [ ! -w "$target" ]; then
    echo 'Permission denied' >&2
    exit 1
fi
folder=${target%/*}
mkdir -p "${folder:-/}" || exit 1
temporary=$folder/.sandhold-$$-arriving
trap 'rm -f "$temporary"' EXIT
cat >"$temporary" || exit 1
[ -e "$SANDHOLD_WHOLE" ] || exit 75
mode=$SANDHOLD_MODE
[ "$mode" ] || { [ -e "$target" ] && mode=$(stat -c %a "$target" 2>/dev/null); }
chmod "${mode:-644}" "$temporary" && mv -f "$temporary" "$target"
