# Running a command: the owner, which the request `start` leaves behind.

sd_unread=$SANDHOLD_OWNER_MORE

# Runs the command if nobody has. Descriptor 7 leads to the request that started us.
sd_own() {
    sd_call=$1 sd_hash=$2 sd_wait=$3 sd_timeout=$4 sd_grace=$5 sd_cap=$7 sd_stdin=$8 sd_output=$9
    if [ "$SANDHOLD_UPLOAD" ]; then
        sd_move_script || exit 0
    fi
    # Its birth is looked up by the watcher, beside the command.
    sd_born=x sd_session=$$ sd_starter=$PPID
    if [ ! -e /proc/self/stat ]; then
        sd_born=0 sd_session=0
    elif ! command -v setsid >/dev/null; then
        sd_process self
    fi
    if ! sd_take_lock "$sd_born" "$sd_session"; then
        [ "$SANDHOLD_UPLOAD" ] && rm -f "$sd_script"
        exit 0
    fi
    sd_clock
    sd_began=$sd_now
    sd_fill_lock
    [ "$sd_output" = reopens ] && printf '' >"$sd_folder/reopens"
    sd_look_for_room
    if [ "$SANDHOLD_UPLOAD" ]; then
        set -- "$sd_script"
    else
        # Not as an argument, which everybody on the machine may read. Its lines keep their numbers.
        set -- -c 'eval "unset SANDHOLD_SCRIPT; $SANDHOLD_SCRIPT"'
    fi
    sd_feeder=
    [ "$sd_stdin" = open ] && { sd_open_stdin || sd_stdin=; }
    # It must not hold the writing end of the command's input, which would then never end. By exec: what is redirected
    # for a function alone, some shells keep open under another number.
    { exec >/dev/null 5<&- 6>&- 9>&- && sd_watch; } &
    sd_watcher=$!
    [ "$sd_stdin" = open ] && sd_start_feeder
    [ "$SANDHOLD_UPLOAD" ] && unset SANDHOLD_SCRIPT
    unset SANDHOLD_LAUNCHER SANDHOLD_LAUNCHER_MORE SANDHOLD_OWNER SANDHOLD_OWNER_MORE SANDHOLD_UPLOAD SANDHOLD_CWD \
        SANDHOLD_OWNS OLDPWD
    sd_code=-
    if ! sd_is_ending; then
        # A session and group of its own: `kill 0` in the script must not hit us. In the foreground, because a
        # background command ignores SIGINT. Appending, so that nothing is overwritten by offset. By exec in a
        # subshell, because a shell writes "Killed" to the stderr that it redirected.
        (
            export SANDHOLD_CALL="$sd_call/"
            if command -v setsid >/dev/null; then
                set -- setsid sh "$@"
            else
                set -- sh "$@"
            fi
            [ "$sd_stdin" = open ] && exec <&5 5<&- 6>&-
            exec "$@" >>"$sd_folder/stdout" 2>>"$sd_folder/stderr" 7>&-
        )
        sd_code=$?
    fi

    sd_is_ending && sd_read_on && sd_sweep "$sd_left"
    sd_look_for_room
    sd_clock
    sd_publish "$sd_code.$sd_began.$sd_now.$sd_reason" 600
    trap '' PIPE
    echo done >&7
    kill "$sd_watcher" $sd_feeder
    wait "$sd_watcher" $sd_feeder
}

# Moves the uploaded script to where it is run from; fails when it does not arrive whole, and tells the request why.
# That comes before the lock: what cannot be run as a whole is not started.
sd_move_script() {
    sd_folder=$sd_home/calls/$sd_call
    sd_script=$sd_folder/script.$$
    sd_why=$(mkdir -p "$sd_folder" 2>&1 && LC_ALL=C mv "$SANDHOLD_UPLOAD" "$sd_script" 2>&1) && return
    rm -f "$sd_script"
    echo "unmoved $sd_why" >&7
    return 1
}

# Notes when the disk is full: what the command writes is lost then, and most programs do not say so.
sd_look_for_room() {
    if printf . >"$sd_folder/room"; then
        printf '' >"$sd_folder/room"
    else
        printf '' >"$sd_folder/full"
    fi
}

# Whether somebody ends the command; sets sd_reason, and sd_left to the grace.
sd_is_ending() {
    for sd_file in "$sd_folder"/ending.*; do
        sd_name=${sd_file##*/ending.}
        sd_reason=${sd_name%.*} sd_left=${sd_name##*.}
        [ "$sd_left" != - ] && sd_is_number "$sd_left" && sd_is_reason "$sd_reason" && return
    done
    sd_reason=-
    return 1
}

# After an ended command: what it left behind gets the rest of the grace of $1 hundredths, then KILL.
sd_sweep() {
    sd_clock
    sd_until=$((sd_now + $1))
    while sd_find_marked "SANDHOLD_CALL=$sd_call/" || sd_find_members; do
        sd_clock
        if [ "$sd_now" -ge "$sd_until" ]; then
            if ! sd_signal KILL || [ "$sd_now" -ge $((sd_until + sd_patience)) ]; then
                sd_is_alive && sd_reason=$sd_reason:alive
                return
            fi
        fi
        sd_sleep 5
    done
}

# ---- The owner's watcher

# Ends the command when its time is up or it has written too much; wakes the request when its wait is over. Told by
# TERM that the command has ended, it leaves.
sd_watch() {
    sd_told= sd_nap=
    trap 'sd_told=1; [ "$sd_nap" ] && kill -9 "$sd_nap"' TERM
    trap '' PIPE
    [ "$sd_born" = x ] && sd_process $$ && printf '' >"$sd_folder/owner.$$.$sd_born.$sd_session"
    sd_clock
    sd_late_at=$((sd_now + sd_wait)) sd_over_at=
    [ "$sd_timeout" -gt 0 ] && sd_over_at=$((sd_now + sd_timeout))
    # The first look comes soon: it puts the command's session on record.
    sd_weighed=0 sd_pause=5 sd_leader=
    sd_weigh_at=$((sd_now + sd_pause))
    while :; do
        [ "$sd_late_at" ] && [ "$sd_now" -ge "$sd_late_at" ] && sd_say_late
        sd_reason=timed_out
        [ "$sd_over_at" ] && [ "$sd_now" -ge "$sd_over_at" ] && break
        if [ "$sd_now" -ge "$sd_weigh_at" ]; then
            sd_read_on
            if sd_process self && [ "$sd_parent" != $$ ]; then
                sd_signal KILL # the owner was killed: what it ran has nobody else left to end it
                exit
            fi
            [ "$sd_leader" ] || sd_find_command
            sd_reason=output_limit:$sd_cap
            sd_is_too_much && break
            sd_weigh_at=$((sd_now + sd_pause))
        fi
        sd_rest=$((sd_weigh_at - sd_now))
        for sd_at in $sd_late_at $sd_over_at; do
            [ $((sd_at - sd_now)) -lt $sd_rest ] && sd_rest=$((sd_at - sd_now))
        done
        sd_nap_for $sd_rest
        sd_clock
    done
    trap '' TERM
    [ "$sd_told" ] || { sd_read_on && sd_end "$sd_reason" "$sd_grace"; }
}

# Wakes the request that waits on descriptor 7: the command goes on without it.
sd_say_late() {
    echo "late $sd_starter" >&7
    exec 7>&-
    sd_late_at=
}

# Whether the command has written more than sd_cap bytes. Sets sd_pause to when to look again: the sooner, the sooner
# it will have at the pace since the last look.
sd_is_too_much() {
    sd_sizes=$(stat -c %s "$sd_folder/stdout" "$sd_folder/stderr") ||
        sd_sizes=$(wc -c <"$sd_folder/stdout" && wc -c <"$sd_folder/stderr")
    sd_weight=0
    for sd_size in $sd_sizes; do
        sd_weight=$((sd_weight + sd_size))
    done
    [ $sd_weight -gt "$sd_cap" ] && return
    sd_grown=$((sd_weight - sd_weighed))
    sd_weighed=$sd_weight
    if [ $sd_grown -gt 0 ]; then
        sd_pause=$(((sd_cap - sd_weight) * sd_pause / sd_grown))
    else
        sd_pause=$((sd_pause * 2))
    fi
    [ $sd_pause -gt 200 ] && sd_pause=200
    [ $sd_pause -lt 20 ] && sd_pause=20
    return 1
}

# Sleeps for $1 hundredths of a second, or leaves at once when told, without leaving a sleep behind whenever that
# is. The sleep is killed by KILL: a TERM between its fork and its exec meets the shell's handler, and is lost.
sd_nap_for() {
    sd_to_seconds "$1"
    for sd_time in "$sd_seconds" $((($1 + 99) / 100)); do
        sleep "$sd_time" 7>&- &
        sd_nap=$!
        [ "$sd_told" ] && kill -9 "$sd_nap"
        wait "$sd_nap"
        sd_code=$?
        if [ "$sd_told" ]; then
            wait "$sd_nap"
            exit
        fi
        [ $sd_code = 0 ] && break
    done
    sd_nap=
}

# ---- The owner's feeder: see input.sh for the queue

# Opens the command's standard input: 5 is its reading end, 9 its writing end, 6 keeps the bell of its queue.
sd_open_stdin() {
    mkfifo "$sd_folder/stdin" "$sd_folder/bell" && mkdir "$sd_folder/input" || return
    exec 6<>"$sd_folder/stdin" 5<"$sd_folder/stdin" 9>"$sd_folder/stdin"
    exec 6<>"$sd_folder/bell"
}

# Starts the feeder, which holds the only writing end from then on. It ends with us: we hold the bell open.
sd_start_feeder() {
    { exec <"$sd_folder/bell" >&9 5<&- 6>&- 7>&- 9>&- && sd_feed; } &
    sd_feeder=$!
    exec 9>&-
}

# Copies the chunks of the queue to the command, in order; ends its input when the queue is closed.
sd_feed() {
    sd_number=1
    while :; do
        sd_chunk=$sd_folder/input/$sd_number
        while [ ! -e "$sd_chunk" ]; do
            read -r sd_word || exit
        done
        [ "$sd_chunk" -ef "$sd_folder/input/closed" ] && exit
        cat "$sd_chunk"
        printf '' >"$sd_chunk" # its name says that it was queued; its content is not needed again
        sd_number=$((sd_number + 1))
    done
}

sd_own "$@"
