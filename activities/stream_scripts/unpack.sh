# Unpacks the tar archive that it reads into the directory SANDHOLD_PATH, which is made, and says "sandhold-unpack KIND":
# `unpacked CODE` with tar's exit code, or `failed REASON`. Files of the same names are replaced. What tar says of entries
# comes before. The names in the archive are relative, and lead nowhere else.

LC_ALL=C
export LC_ALL
umask 022

answer() {
    printf '\nsandhold-unpack %s\n' "$1"
    exit 0
}

why=$( (mkdir -p -- "$SANDHOLD_PATH" && cd -- "$SANDHOLD_PATH" && [ -w . ] || { printf 'Permission denied' >&2 && false; }) 2>&1) ||
    answer "failed $why"
CDPATH= cd -- "$SANDHOLD_PATH" || exit 1
set -- -xof -
if tar --version 2>/dev/null | grep -q 'GNU tar'; then
    set -- --quoting-style=escape --delay-directory-restore --warning=no-timestamp -b 128 "$@"
fi
tar "$@"
code=$?
# To the end, which is known to be the end only then.
cat >/dev/null
[ -e "$SANDHOLD_WHOLE" ] || exit 1
answer "unpacked $code"
