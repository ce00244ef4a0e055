# Out: runs the program SANDHOLD_PROGRAM and cuts what it writes to stdout into parts of SANDHOLD_PART_BYTES in the
# spool SANDHOLD_SPOOL, at most SANDHOLD_PARTS at a time. When nobody has taken a part for SANDHOLD_PATIENCE seconds it
# gives up; also when the spool has gone.

ss_own || exit 1

# By exec in a subshell: what is redirected for a function alone, some shells keep open under another number.
ss_run() (
    exec 2>&1 >&3 3>&-
    sh -c "$SANDHOLD_PROGRAM"
    printf '' >"$SANDHOLD_SPOOL/code.$?"
)

# A part is what dd gets by ss_blocks reads: where it knows no fullblock they may be short, and the part with them. The
# first ones are small, so that there is something to take while the rest is made.
ss_cut() {
    ss_full=
    dd if=/dev/null bs=1 count=1 iflag=fullblock 2>/dev/null && ss_full=iflag=fullblock
    ss_most=$((SANDHOLD_PART_BYTES / 65536))
    ss_blocks=8
    ss_parts=0
    while ss_wait_without "$SANDHOLD_SPOOL/part.$((ss_parts + 1 - SANDHOLD_PARTS))"; do
        ss_blocks=$((ss_blocks * 2 < ss_most ? ss_blocks * 2 : ss_most))
        if ! dd bs=65536 count=$ss_blocks $ss_full of="$SANDHOLD_SPOOL/new" 2>/dev/null; then
            rm -f "$SANDHOLD_SPOOL/new"
            printf '' >"$SANDHOLD_SPOOL/end.$ss_parts.full"
            return
        fi
        if [ ! -s "$SANDHOLD_SPOOL/new" ]; then
            for ss_file in "$SANDHOLD_SPOOL"/code.*; do # made before the program's end of this pipe was closed
                printf '' >"$SANDHOLD_SPOOL/end.$ss_parts.${ss_file##*.}"
            done
            return
        fi
        ss_parts=$((ss_parts + 1))
        mv "$SANDHOLD_SPOOL/new" "$SANDHOLD_SPOOL/part.$ss_parts" || return
    done
}

{ ss_run | ss_keep; } 3>&1 | ss_cut
# Until whoever takes the parts removes the spool.
for ss_file in "$SANDHOLD_SPOOL"/end.*; do
    ss_wait_without "$ss_file"
done
exit 0
