# Makes the spool of a new attempt and answers "ready PARTBYTES PATH", or "full" when there is no room for one. Before
# that it answers "earlier ID PATH" for each spool that earlier attempts of the same call left, and removes those of
# other calls that nobody lives for.
#
# SANDHOLD_STREAM is the attempt's id, SANDHOLD_CALL_PREFIX what the ids of all attempts of the call begin with.
# SANDHOLD_PART_BYTES and SANDHOLD_PARTS say how much may lie in the spool, SANDHOLD_LEAST_BYTES how small a part may be.

# Sets ss_room to the free KiB below the folder $1; empty when nothing tells.
ss_measure() {
    ss_room=$(df -Pk "$1" 2>/dev/null | {
        read -r ss_line
        read -r ss_line
        # The name of the device may hold blanks: counted from the end.
        ss_line=${ss_line% *} ss_line=${ss_line% *}
        set -- $ss_line
        while [ $# -gt 1 ]; do shift; done
        printf '%s' "$1"
    })
    case $ss_room in '' | *[!0-9]*) ss_room= ;; esac
}

# Whether the spool $1 belongs to nobody: its owner has died, or has not come for long.
ss_is_left() { ! ss_lives "$1" || { [ "$ss_was_born" = - ] && [ "$(find "$1" -prune -mmin +10 2>/dev/null)" ]; }; }

ss_spool=
for ss_place in "${HOME:-/tmp}" /tmp /dev/shm; do
    ss_folder=$ss_place/.sandhold/streams
    for ss_other in "$ss_folder"/*; do
        [ -d "$ss_other" ] || continue
        case ${ss_other##*/} in
        "$SANDHOLD_STREAM") ;; # made by this request's first try, whose answer was lost
        "$SANDHOLD_CALL_PREFIX"*) ss_answer "earlier ${ss_other##*/} $ss_other" ;;
        *) ss_is_left "$ss_other" && rm -rf "$ss_other" ;;
        esac
    done
    [ "$ss_spool" ] && continue
    [ -d "$ss_place" ] && [ -w "$ss_place" ] || continue
    ss_measure "$ss_place"
    ss_bytes=$SANDHOLD_PART_BYTES
    # What must stay free for others is as much as the spool takes.
    while [ "$ss_room" ] && [ $((ss_bytes * SANDHOLD_PARTS * 2 / 1024)) -gt "$ss_room" ]; do
        ss_bytes=$((ss_bytes / 2))
    done
    [ "$ss_bytes" -ge "$SANDHOLD_LEAST_BYTES" ] || continue
    mkdir -p "$ss_folder/$SANDHOLD_STREAM" 2>/dev/null || continue
    # A file system may take a folder and no bytes.
    if { printf '%s\n' '- -' >"$ss_folder/$SANDHOLD_STREAM/writer"; } 2>/dev/null; then
        ss_spool=$ss_folder/$SANDHOLD_STREAM
    else
        rm -rf "$ss_folder/$SANDHOLD_STREAM"
    fi
done
if [ "$ss_spool" ]; then ss_answer "ready $ss_bytes $ss_spool"; else ss_answer full; fi
