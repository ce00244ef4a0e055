# In: gives the parts in the spool SANDHOLD_SPOOL to the program SANDHOLD_PROGRAM on its stdin, one after the other, and
# removes each. When no part has come for SANDHOLD_PATIENCE seconds, or the spool has gone, the program's input ends; but
# only after the last part is there the file SANDHOLD_WHOLE, without which the program must not put anything in place.

ss_own || exit 1
SANDHOLD_WHOLE=$SANDHOLD_SPOOL/whole
export SANDHOLD_WHOLE

ss_feed() {
    ss_number=1
    ss_clock
    ss_until=$((ss_now + SANDHOLD_PATIENCE))
    while [ -e "$SANDHOLD_SPOOL/writer" ] && [ "$ss_now" -lt $ss_until ]; do
        if [ -e "$SANDHOLD_SPOOL/part.$ss_number" ]; then
            cat "$SANDHOLD_SPOOL/part.$ss_number" 2>/dev/null || return
            rm -f "$SANDHOLD_SPOOL/part.$ss_number"
            ss_number=$((ss_number + 1))
            ss_clock
            ss_until=$((ss_now + SANDHOLD_PATIENCE))
        elif [ -e "$SANDHOLD_SPOOL/last.$((ss_number - 1))" ]; then
            printf '' >"$SANDHOLD_WHOLE"
            return
        else
            sleep "$ss_nap"
            ss_clock
        fi
    done
}

ss_run() {
    sh -c "$SANDHOLD_PROGRAM" 2>&1
    printf '' >"$SANDHOLD_SPOOL/code.$?"
}

ss_feed | ss_run | ss_keep
for ss_file in "$SANDHOLD_SPOOL"/code.*; do
    printf '' >"$SANDHOLD_SPOOL/end.0.${ss_file##*.}"
done
# Until whoever sent the parts has seen the end and removes the spool.
for ss_file in "$SANDHOLD_SPOOL"/end.*; do
    ss_wait_without "$ss_file"
done
exit 0
