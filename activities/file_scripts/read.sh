# Reads a file, or a window of its lines, and answers within a frame:
#
#   sandhold-file KIND SIZE LINES ENCODING
#   the bytes, as base64 or as od's hexadecimal
#   sandhold-end
#
# KIND is `whole` or `window`; for a file that cannot be read it is `directory`, `special` or `failed`, and
# the frame holds the reason in words. In the environment: SANDHOLD_PATH (absolute), SANDHOLD_OFFSET and
# SANDHOLD_LIMIT (lines), SANDHOLD_BOUND (the most bytes to answer; a file up to this size comes whole).

LC_ALL=C
export LC_ALL
path=$SANDHOLD_PATH

answer() {
    printf '\nsandhold-file %s\n' "$1"
    cat
    printf '\nsandhold-end\n'
    exit 0
}

refuse() {
    printf '%s' "$2" | answer "$1"
    exit 0
}

encoding=hex
encode() { od -An -v -tx1; }
if command -v base64 >/dev/null 2>&1; then
    encoding=base64
    encode() { base64; }
fi

[ -d "$path" ] && refuse 'directory 0 0' ''
# Opening a pipe would wait for its other end, and a device may never end.
[ -e "$path" ] && [ ! -f "$path" ] && refuse 'special 0 0' ''
# Opening says better than a test why a file cannot be read: missing, or out of reach.
why=$( (exec <"$path") 2>&1) || refuse 'failed 0 0' "$why"

size=$(wc -c <"$path") || refuse 'failed 0 0' 'the file cannot be read'
size=$((size))
if [ "$size" -le "$SANDHOLD_BOUND" ]; then
    head -c "$SANDHOLD_BOUND" <"$path" 2>/dev/null | encode | answer "whole $size 0 $encoding"
    exit 0
fi

lines=$(($(wc -l <"$path")))
# A last line without its newline is a line too.
[ "$(($(tail -c 1 "$path" | wc -l)))" -eq 1 ] || lines=$((lines + 1))
if [ "$SANDHOLD_OFFSET" -ge "$lines" ]; then
    refuse "window $size $lines $encoding" ''
fi
# Nothing here holds more than a buffer: a line of any length ends at the bound.
tail -n "+$((SANDHOLD_OFFSET + 1))" <"$path" 2>/dev/null |
    head -n "$SANDHOLD_LIMIT" 2>/dev/null |
    head -c "$((SANDHOLD_BOUND + 1))" 2>/dev/null |
    encode | answer "window $size $lines $encoding"
