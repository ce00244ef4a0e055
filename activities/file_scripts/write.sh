# Writes a file, or appends to it, once for each call id, and answers within a frame:
#
#   sandhold-file KIND SIZE SHA256
#   the reason in words, where KIND is `failed`
#   sandhold-end
#
# KIND is `written`, `need-upload` (no base64 here: send the content as a file), `damaged` (the content did not
# arrive whole), `directory`, `special`, `changed` (a part may be appended, and others have changed the file
# since, so that it does not tell) or `failed`. In the environment: SANDHOLD_PATH (absolute), SANDHOLD_MODE (octal or
# empty), SANDHOLD_APPEND (0 or 1), SANDHOLD_CALL (the call's folder name), SANDHOLD_SIZE (bytes of content),
# SANDHOLD_SHA256 (of the content), and the content as SANDHOLD_DATA (base64) or as the file SANDHOLD_UPLOAD.

LC_ALL=C
export LC_ALL
umask 022
target=$SANDHOLD_PATH
data=$SANDHOLD_DATA
unset SANDHOLD_DATA
upload=$SANDHOLD_UPLOAD
call=${HOME:-/home/daytona}/.sandhold/calls/$SANDHOLD_CALL
temporary=

leave() {
    [ -z "$upload" ] || rm -f "$upload"
    [ -z "$temporary" ] || rm -f "$temporary"
}
trap leave EXIT

answer() {
    printf '\nsandhold-file %s\n%s\nsandhold-end\n' "$1" "$2"
    exit 0
}

fail() { answer 'failed 0 -' "$1"; }

content() {
    if [ -n "$upload" ]; then
        cat "$upload"
    else
        printf '%s' "$data" | base64 -d
    fi
}

if command -v sha256sum >/dev/null 2>&1; then
    sum() { sha256sum; }
elif command -v shasum >/dev/null 2>&1; then
    sum() { shasum -a 256; }
elif command -v openssl >/dev/null 2>&1; then
    sum() { openssl dgst -sha256 -r; }
else
    fail 'the sandbox has no program that computes SHA-256 (sha256sum, shasum or openssl)'
fi

# sum_of FILE: its hash alone.
sum_of() {
    of=$(sum <"$1")
    printf '%s' "${of%% *}"
}

size_of() { printf '%s' "$(($(wc -c <"$1")))"; }

# Records what holds now, so that a later attempt of this call gives the same answer and does nothing. When
# the record cannot be written (a full disk), the file itself still tells a later attempt enough.
finish() {
    result="written $(size_of "$target") $(sum_of "$target")"
    { printf '%s\n' "$result" >"$call/written.$$" && mv -f "$call/written.$$" "$call/written"; } 2>/dev/null
    rm -f "$call"/upload-*
    answer "$result" ''
}

# A killed writer says nothing: in a sandbox that is out of memory or of disk.
reason() {
    if [ "$1" -gt 128 ] && [ -z "$2" ]; then
        printf 'killed while writing: no space left'
    else
        printf '%s' "$2"
    fi
}

[ -n "$upload" ] || command -v base64 >/dev/null 2>&1 || answer 'need-upload 0 -' ''
why=$( (mkdir -p "$call" && : >"$call/lock") 2>&1) || fail "$why"
# An earlier attempt whose answer was lost may still be at it. The lock ends with its process.
exec 9>"$call/lock"
if command -v flock >/dev/null 2>&1; then flock -x 9; fi
if [ -f "$call/written" ]; then answer "$(cat "$call/written")" ''; fi

# A link is followed: the file that it leads to is written, and the link stays.
if [ -L "$target" ]; then
    resolved=$(readlink -f "$target" && printf x) || fail 'the link leads nowhere: No such file or directory'
    target=${resolved%?x}
fi
case $target in */) answer 'directory 0 -' '' ;; esac
[ -d "$target" ] && answer 'directory 0 -' ''
[ -e "$target" ] && [ ! -f "$target" ] && answer 'special 0 -' ''
[ -e "$target" ] && [ ! -w "$target" ] && fail 'Permission denied'
folder=${target%/*}
why=$(mkdir -p "${folder:-/}" 2>&1) || fail "$why"
if [ -n "$upload" ] && [ "$(sum_of "$upload")" != "$SANDHOLD_SHA256" ]; then
    answer 'damaged 0 -' ''
fi

if [ "$SANDHOLD_APPEND" = 0 ]; then
    # The new content replaces the old in one step: nobody ever sees half of it.
    # Named from inside the folder: a path as long as Linux takes leaves no room for a longer name beside the file's.
    why=$(cd -P "${folder:-/}" 2>&1) && cd -P "${folder:-/}" || fail "$why"
    # An attempt that was killed has left its own behind. One that still lives, where no lock can be had, then finds
    # nothing to put in place. No call id has a ~.
    rm -f ".sandhold-$SANDHOLD_CALL"~*
    temporary=.sandhold-$SANDHOLD_CALL~$$
    why=$({ content >"$temporary"; } 2>&1) || fail "$(reason $? "$why")"
    [ "$(size_of "$temporary")" -eq "$SANDHOLD_SIZE" ] || answer 'damaged 0 -' ''
    mode=$SANDHOLD_MODE
    if [ -z "$mode" ] && [ -e "$target" ]; then mode=$(stat -c %a "$target" 2>/dev/null); fi
    why=$(chmod "${mode:-644}" "$temporary" 2>&1 && mv -f "$temporary" "$target" 2>&1) || fail "$why"
    temporary=
    finish
fi

# How many bytes behind $before are ours, and the content's beginning; fails when there is anything else.
is_ours() {
    have=0
    [ ! -e "$target" ] || have=$(size_of "$target")
    added=$((have - before))
    [ "$added" -ge 0 ] || return 1
    [ "$added" -le "$SANDHOLD_SIZE" ] || added=$SANDHOLD_SIZE
    there=$(tail -c "+$((before + 1))" "$target" 2>/dev/null | head -c "$added" | sum)
    ours=$(content | head -c "$added" | sum)
    [ "$there" = "$ours" ]
}

# Appending writes in place, as a program that holds the file open expects. The size before is on record
# before the first byte is added, so that a later attempt sees what an earlier one did.
if [ -f "$call/append" ]; then
    before=$(cat "$call/append")
    is_ours || answer 'changed 0 -' ''
else
    before=0
    [ ! -e "$target" ] || before=$(size_of "$target")
    added=0
    why=$({ printf '%s\n' "$before" >"$call/append.$$" && mv -f "$call/append.$$" "$call/append"; } 2>&1) || fail "$why"
fi
is_new=
[ -e "$target" ] || is_new=1
why=$({ content | tail -c "+$((added + 1))" >>"$target"; } 2>&1)
code=$?
if [ "$code" -ne 0 ] || [ "$(size_of "$target")" -lt "$((before + SANDHOLD_SIZE))" ]; then
    # Nothing half-written stays: back to the size before, unless others have appended meanwhile.
    is_ours && [ "$have" -le "$((before + SANDHOLD_SIZE))" ] || answer 'changed 0 -' ''
    if [ -n "$is_new" ]; then
        rm -f "$target"
    else
        dd if=/dev/null of="$target" bs=1 seek="$before" 2>/dev/null
    fi
    rm -f "$call/append"
    fail "$(reason "$code" "$why")"
fi
mode=$SANDHOLD_MODE
if [ -n "$is_new" ]; then mode=${mode:-644}; fi
if [ -n "$mode" ]; then why=$(chmod "$mode" "$target" 2>&1) || fail "$why"; fi
finish
