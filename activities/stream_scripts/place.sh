# Puts stdin in the place of the file SANDHOLD_TARGET, in one step once it is whole; with the mode SANDHOLD_MODE (octal),
# else that of the file before, else 644. Folders above it are made, a link is followed. Ends with 75 when the stream broke
# off or was not SANDHOLD_SIZE bytes long (empty: any); what is there stays then, as it does when anything fails, which is
# told on stderr.
#
# Until it is whole it lies beside its place as .sandhold-SANDHOLD_NAME, the same for every attempt.

LC_ALL=C
export LC_ALL
umask 022
target=$SANDHOLD_TARGET
refuse() {
    echo "$1" >&2
    exit 1
}
if [ -L "$target" ]; then
    target=$(readlink -f "$target" && printf x) || refuse 'the link leads nowhere: No such file or directory'
    target=${target%?x}
fi
case $target in */) refuse 'Is a directory' ;; esac
[ ! -d "$target" ] || refuse 'Is a directory'
[ ! -e "$target" ] || [ -f "$target" ] || refuse 'not a regular file'
[ ! -e "$target" ] || [ -w "$target" ] || refuse 'Permission denied'
folder=${target%/*}
# Named from inside the folder: a path as long as Linux takes leaves no room for a longer name beside the file's.
mkdir -p "${folder:-/}" && cd -P "${folder:-/}" || exit 1
temporary=.sandhold-$SANDHOLD_NAME
trap 'rm -f "$temporary"' EXIT
trap 'exit 143' HUP INT TERM
rm -f "$temporary"
cat >"$temporary" || exit 1
[ -e "$SANDHOLD_WHOLE" ] || exit 75
[ -z "$SANDHOLD_SIZE" ] || [ "$(($(wc -c <"$temporary")))" -eq "$SANDHOLD_SIZE" ] || exit 75
mode=$SANDHOLD_MODE
[ "$mode" ] || { [ -e "$target" ] && mode=$(stat -c %a "$target" 2>/dev/null); }
chmod "${mode:-644}" "$temporary" && mv -f "$temporary" "$target"
