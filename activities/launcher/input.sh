# What is sent to a running command: input and signals, once for each call that sends some.
#
# The folder input/ of a command whose standard input is kept open is a queue:
#
#   from.CALL     the data that CALL writes: linked here when it is complete, emptied when the command has got it
#   end.CALL      CALL ends the input
#   closed        another name of the one end.CALL that does
#   1 2 3 ...     further names of these files: what the feeder gives the command, in order
#
# A link is made at once or not at all, and fails where there is one: so nothing is queued in part, and what a lost
# request has queued is found again by being the same file.

# The request `write`: queues SANDHOLD_INPUT (escaped for printf) or the file SANDHOLD_UPLOAD for the call $1, on
# behalf of the call $2, and ends the input after it when $3 is "close".
sd_answer_write() {
    sd_look "$1"
    sd_queue=$sd_folder/input
    if [ "$sd_state" = absent ] || [ "$sd_state" = cleaned ]; then
        echo "@error unknown"
    elif [ ! -d "$sd_queue" ]; then
        [ "$sd_state" = running ] && echo "@error no_stdin" || echo "@error over"
    elif sd_put_data "$2" && { [ "$3" != close ] || sd_put_end "$2"; }; then
        [ "$sd_state" = running ] && echo 1<>"$sd_folder/bell"
        sd_tell_state
    else
        echo "@error $sd_refusal"
    fi
}

sd_put_data() {
    [ "$SANDHOLD_INPUT$SANDHOLD_UPLOAD" ] || return 0
    sd_data=$sd_queue/from.$1
    if [ ! -e "$sd_data" ] && [ "$sd_state" = running ]; then
        # Under a name that nobody else uses: what a killed request leaves may have been linked already.
        sd_new=$sd_queue/new.$sd_nonce
        if [ "$SANDHOLD_UPLOAD" ]; then
            sd_why=$(mv "$SANDHOLD_UPLOAD" "$sd_new" 2>&1)
        else
            sd_why=$({ printf '%b' "$SANDHOLD_INPUT" >"$sd_new"; } 2>&1)
        fi && ln "$sd_new" "$sd_data"
        rm -f "$sd_new"
        if [ ! -e "$sd_data" ]; then
            sd_refusal="folder $sd_why"
            return 1
        fi
    fi
    sd_enqueue "$sd_data"
}

sd_put_end() {
    sd_end=$sd_queue/end.$1
    if [ "$sd_state" = running ]; then
        printf '' >"$sd_end"
        ln "$sd_end" "$sd_queue/closed"
    fi
    sd_refusal=over
    [ -e "$sd_end" ] || return 1
    sd_refusal=closed
    [ "$sd_end" -ef "$sd_queue/closed" ] && sd_enqueue "$sd_end"
}

# Gives the file $1 the first free number, unless it has one. Fails behind the end of the input, and when the command
# is over; sets sd_refusal.
sd_enqueue() {
    sd_number=1 sd_tries=0
    while :; do
        sd_place=$sd_queue/$sd_number
        if [ -e "$sd_place" ]; then
            [ "$sd_place" -ef "$1" ] && return
            sd_refusal=closed
            [ "$sd_place" -ef "$sd_queue/closed" ] && return 1
            sd_number=$((sd_number + 1))
        else
            sd_refusal=over
            [ "$sd_state" = running ] || return 1
            sd_why=$(ln "$1" "$sd_place" 2>&1)
            sd_refusal="folder $sd_why"
            [ -e "$sd_place" ] || [ $((sd_tries += 1)) -lt 3 ] || return 1
        fi
    done
}

# The request `signal`: sends the signal $3 to the command of the call $1, on behalf of the call $2.
sd_answer_signal() {
    sd_look "$1"
    sd_sent=$sd_folder/signalled.$2
    if [ "$sd_state" = absent ] || [ "$sd_state" = cleaned ]; then
        echo "@error unknown"
    elif [ -e "$sd_sent" ]; then
        sd_tell_state
    elif [ "$sd_state" != running ]; then
        echo "@error over"
    elif sd_why=$({ set -C && printf '' >"$sd_sent"; } 2>&1); then
        sd_tries=0
        # The command may be between fork and exec, where nothing tells it yet.
        until sd_signal "$3"; do
            sd_sleep 5
            sd_look "$1"
            [ "$sd_state" = running ] && [ $((sd_tries += 1)) -lt 40 ] || break
        done
        sd_look "$1"
        sd_tell_state
    elif [ -e "$sd_sent" ]; then
        sd_tell_state # another attempt of the same call was quicker
    else
        echo "@error folder $sd_why"
    fi
}
