# Running a command: the request `start`, and the detached owner that it leaves behind.

# ---- The owner

# Runs the command if nobody has. Descriptor 7 leads to the request that started us.
sd_own() {
    sd_call=$1 sd_hash=$2 sd_wait=$3 sd_timeout=$4 sd_grace=$5 sd_cap=$7 sd_stdin=$8 sd_output=$9
    if [ "$SANDHOLD_UPLOAD" ]; then
        sd_move_script || exit 0
    fi
    if ! sd_take_lock; then
        [ "$SANDHOLD_UPLOAD" ] && rm -f "$sd_script"
        exit 0
    fi
    sd_starter=$sd_parent
    sd_clock
    sd_began=$sd_now
    sd_fill_lock
    [ "$sd_output" = reopens ] && printf '' >"$sd_folder/reopens"
    sd_look_for_room
    if [ "$SANDHOLD_UPLOAD" ]; then
        set -- "$sd_script"
    else
        set -- -c "$SANDHOLD_SCRIPT"
    fi
    sd_feeder=
    [ "$sd_stdin" = open ] && { sd_open_stdin || sd_stdin=; }
    # It must not hold the writing end of the command's input, which would then never end. By exec: what is redirected
    # for a function alone, some shells keep open under another number.
    { exec >/dev/null 5<&- 6>&- 9>&- && sd_watch; } &
    sd_watcher=$!
    [ "$sd_stdin" = open ] && sd_start_feeder
    unset SANDHOLD_LAUNCHER SANDHOLD_SCRIPT SANDHOLD_UPLOAD SANDHOLD_CWD SANDHOLD_OWNS OLDPWD
    sd_code=-
    if ! sd_is_ending; then
        # A session and group of its own: `kill 0` in the script must not hit us. In the foreground, because a
        # background command ignores SIGINT. Appending, so that nothing is overwritten by offset. By exec in a
        # subshell, because a shell writes "Killed" to the stderr that it redirected.
        (
            export SANDHOLD_CALL="$sd_call/"
            if command -v setsid >/dev/null; then
                # By exec it becomes the command's leader: pid and time of birth stay.
                sd_process self && printf '' >"$sd_folder/session.${sd_line%% *}.$sd_born"
                set -- setsid sh "$@"
            else
                set -- sh "$@"
            fi
            [ "$sd_stdin" = open ] && exec <&5 5<&- 6>&-
            exec "$@" >>"$sd_folder/stdout" 2>>"$sd_folder/stderr" 7>&-
        )
        sd_code=$?
    fi

    sd_is_ending && sd_sweep "$sd_left"
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
    sd_clock
    sd_late_at=$((sd_now + sd_wait)) sd_over_at=
    [ "$sd_timeout" -gt 0 ] && sd_over_at=$((sd_now + sd_timeout))
    sd_weighed=0 sd_pause=25
    sd_weigh_at=$((sd_now + sd_pause))
    while :; do
        [ "$sd_late_at" ] && [ "$sd_now" -ge "$sd_late_at" ] && sd_say_late
        sd_reason=timed_out
        [ "$sd_over_at" ] && [ "$sd_now" -ge "$sd_over_at" ] && break
        if [ "$sd_now" -ge "$sd_weigh_at" ]; then
            if sd_process self && [ "$sd_parent" != $$ ]; then
                sd_signal KILL # the owner was killed: what it ran has nobody else left to end it
                exit
            fi
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
    [ "$sd_told" ] || sd_end "$sd_reason" "$sd_grace"
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

# ---- The request

# The request `start`: starts the command of the call $1 unless it was started, and waits for its end. $2 is its
# script's hash, $3 the wait, $4 the timeout (0 for none) and $5 the grace in hundredths of a second. $6 is "again"
# when an earlier request may have started it, $7 the most bytes it may write, $8 "open" to keep its input open,
# $9 "reopens" when its script opens its own output anew.
sd_answer_start() {
    sd_look "$1"
    sd_clock
    sd_until=$((sd_now + $3))
    [ "$sd_state" = absent ] && [ "$6" = again ] && sd_look_closely "$1"
    if [ "$sd_state" = absent ]; then
        sd_enter "$SANDHOLD_CWD" || return
        if [ "$SANDHOLD_UPLOAD" ] && [ ! -r "$SANDHOLD_UPLOAD" ]; then
            echo "@error script_missing"
            return
        fi
        if [ "$8" = open ] && ! command -v mkfifo >/dev/null; then
            echo "@error no_mkfifo"
            return
        fi
        sd_launch "$@" && return
        sd_look "$1"
        if [ "$sd_state" = absent ]; then
            if sd_why=$(LC_ALL=C mkdir -p "$sd_folder" 2>&1); then
                echo "@error not_started"
            else
                echo "@error folder $sd_why"
            fi
            return
        fi
    fi
    [ "$sd_state" = running ] && sd_wait_for "$1" 0 0
    sd_tell
}

# Enters the directory $1, or tells why not.
sd_enter() {
    CDPATH= cd -- "$1" && return
    if [ -d "$1" ]; then
        echo "@error cwd_denied"
    elif [ -e "$1" ]; then
        echo "@error cwd_not_a_directory"
    else
        echo "@error cwd_missing"
    fi
    return 1
}

# Starts the owner, waits until it says that the command has ended or that the wait is over, and tells. Fails when
# the owner left without a word: another one was first, or it could not be started.
#
# The left side of the pipe waits for the owner, so that a short command leaves no orphan for the sandbox's init to
# reap, and is killed when the owner goes on alone. Nothing runs by `&`: that would make the command ignore SIGINT.
sd_launch() {
    sd_setsid=setsid
    command -v setsid >/dev/null || sd_setsid=
    {
        SANDHOLD_OWNS=$1/ $sd_setsid sh -c "$SANDHOLD_LAUNCHER" sandhold own "$@" 7>&1 >/dev/null </dev/null
        : # without a command after it, some shells would become the owner instead of waiting for it
    } | {
        [ -d "$sd_folder" ] || mkdir -p "$sd_folder" # while the owner's shell starts, which needs it first
        read -r sd_word sd_rest || exit 1
        case $sd_word in
        unmoved)
            echo "@error script $sd_rest"
            exit
            ;;
        late) kill -9 "$sd_rest" ;;
        esac
        sd_look "$1"
        sd_tell
    }
}
