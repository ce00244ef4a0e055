# Stores what it reads as the file SANDHOLD_PATH (absolute), in place of what was there once everything has come, and
# says "sandhold-store KIND" and the reason in words behind it, where there is one. KIND is `stored`, `directory`,
# `special`, `damaged` (not SANDHOLD_SIZE bytes came) or `failed`. A link is followed, and the file keeps its mode.
#
# Until then the content lies beside it, as .sandhold-SANDHOLD_NAME: the same name for every attempt.

LC_ALL=C
export LC_ALL
umask 022
target=$SANDHOLD_PATH
temporary=
trap '[ -z "$temporary" ] || rm -f "$temporary"' EXIT
trap 'exit 143' HUP INT TERM

answer() {
    printf '\nsandhold-store %s\n' "$1"
    exit 0
}

if [ -L "$target" ]; then
    # The x keeps a newline at the end of the name.
    resolved=$(readlink -f "$target" && printf x) || answer 'failed the link leads nowhere: No such file or directory'
    target=${resolved%?x}
fi
case $target in */) answer directory ;; esac
[ -d "$target" ] && answer directory
[ -e "$target" ] && [ ! -f "$target" ] && answer special
[ -e "$target" ] && [ ! -w "$target" ] && answer 'failed Permission denied'
folder=${target%/*}
why=$(mkdir -p "${folder:-/}" 2>&1) || answer "failed $why"
temporary=$folder/.sandhold-$SANDHOLD_NAME
rm -f "$temporary"
why=$({ cat >"$temporary"; } 2>&1) || answer "failed $why"
[ -e "$SANDHOLD_WHOLE" ] || exit 1
[ "$(($(wc -c <"$temporary")))" -eq "$SANDHOLD_SIZE" ] || answer damaged
mode=
[ -e "$target" ] && mode=$(stat -c %a "$target" 2>/dev/null)
why=$(chmod "${mode:-644}" "$temporary" 2>&1 && mv -f "$temporary" "$target" 2>&1) || answer "failed $why"
temporary=
answer stored
