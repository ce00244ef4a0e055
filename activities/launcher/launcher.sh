# The command launcher: starts a command at most once per call, waits for it, tells what became of it, ends it.
#
# It is sent with every request and run by a POSIX sh inside the sandbox; `request.py` says how it is called
# and reads its answer. Each call has a folder below ~/.sandhold/calls:
#
#   lock                      made exclusively by the one process that runs the command; holds the script's hash
#   owner.PID.BORN.SESSION    who tried to run it; made before the lock, so a lock always has an owner on record
#   stdout stderr             what the command wrote, byte for byte
#   script.PID                the script, when it is too large for a variable
#   ending.REASON.GRACE       somebody ends the command: timed_out or cancelled
#   ended.CODE.BORN.ENDED.REASON   how it ended
#   room                      empty; written to when there is a need to know whether anything can be
#   full                      it could not be, so output may be missing
#
# What must never be half written is said by the name of an empty file: making one is atomic, needs no process,
# and works on a full disk. Whether a command still runs is asked of its owner's pid *and* time of birth.
#
# Every fork counts (about 1 ms), so this uses builtins wherever it can. Variables begin with sd_ because the
# user's environment passes through this shell: assigning to one of its names would change it for the command.

exec 2>/dev/null

sd_home=${HOME:-/tmp}/.sandhold

# ---- Time and processes

# Sets sd_now to hundredths of a second on the sandbox's clock, which only ever goes forward.
sd_clock() {
    if read -r sd_up sd_rest </proc/uptime; then
        sd_now=$((${sd_up%.*} * 100 + 1${sd_up#*.} - 100))
    else
        sd_now=$(date +%s)00
    fi
}

# Sets sd_seconds to $1 hundredths of a second as a decimal fraction.
sd_to_seconds() {
    sd_seconds=$(($1 / 100)).$(($1 % 100 / 10))$(($1 % 10))
}

# Sleeps for $1 hundredths of a second; where sleep knows no fractions, for whole seconds.
sd_sleep() {
    sd_to_seconds "$1"
    sleep "$sd_seconds" || sleep $((($1 + 99) / 100))
}

# Reads about the process $1: sd_status sd_parent sd_group sd_session sd_born (hundredths of a second, as the clock).
sd_process() {
    read -r sd_line <"/proc/$1/stat" || return 1
    set -- ${sd_line##*") "}
    sd_status=$1 sd_parent=$2 sd_group=$3 sd_session=$4 sd_born=${20}
}

# Whether the owner of the call in sd_folder lives; sets sd_owner and sd_owner_session. A pid alone does not
# tell: pids are used again. A racer that lost the lock is an owner too, for a moment.
sd_owner_lives() {
    for sd_file in "$sd_folder"/owner.*; do
        sd_name=${sd_file##*/owner.}
        sd_owner=${sd_name%%.*}
        sd_name=${sd_name#*.}
        sd_owner_session=${sd_name#*.}
        if sd_process "$sd_owner"; then
            [ "$sd_born" = "${sd_name%%.*}" ] && [ "$sd_status" != Z ] && return 0
        elif [ "${sd_name%%.*}" = 0 ]; then
            kill -0 "$sd_owner" && return 0 # no /proc here
        fi
    done
    return 1
}

# Sets sd_marked to the pids that carry the mark $1 in their environment; fails when there are none. The command's
# mark is SANDHOLD_CALL=ID/, which also finds what left its process group and session; its owner's, SANDHOLD_OWNS=ID/.
sd_find_marked() {
    sd_marked=
    for sd_file in $(grep -lF "$1" /proc/[0-9]*/environ); do
        sd_file=${sd_file#/proc/}
        sd_marked="$sd_marked ${sd_file%/environ}"
    done
    [ "$sd_marked" ]
}

# Sends the signal $1 to everything that belongs to the call sd_call: the command's process group, found as the
# owner's child, and the groups of whatever carries the mark. Once to each: many programs take a second TERM for
# impatience. Fails when there was nothing to signal.
sd_signal() {
    sd_groups=" "
    sd_hit=
    if sd_owner_lives && read -r sd_children <"/proc/$sd_owner/task/$sd_owner/children"; then
        for sd_pid in $sd_children; do
            # Only a child that has left the owner's session is the command; before that its group is the owner's.
            sd_process "$sd_pid" && [ "$sd_session" = "$sd_pid" ] && sd_signal_group "$1" "$sd_pid"
        done
    fi
    sd_find_marked "SANDHOLD_CALL=$sd_call/"
    for sd_pid in $sd_marked; do
        sd_process "$sd_pid" || continue
        if [ "$sd_session" != "$sd_owner_session" ]; then
            sd_signal_group "$1" "$sd_group"
        else
            kill "-$1" "$sd_pid" && sd_hit=1 # no setsid here: the group is not the command's own
        fi
    done
    [ "$sd_hit" ]
}

sd_signal_group() {
    case $sd_groups in *" $2 "*) return ;; esac
    sd_groups="$sd_groups$2 "
    kill "-$1" "-$2" && sd_hit=1
}

# ---- The state of a call

# Sets sd_state to ended (with sd_code sd_began sd_ended sd_reason), running (with sd_began), interrupted (it was
# started, has no end, and nothing runs it) or absent.
sd_look() {
    sd_call=$1
    sd_folder=$sd_home/calls/$1
    sd_code=- sd_began=- sd_ended=- sd_reason=-
    sd_has_ended && return
    if [ ! -e "$sd_folder/lock" ]; then
        sd_state=absent
    elif sd_owner_lives; then
        sd_state=running sd_began=$sd_born
    elif ! sd_has_ended; then # it may have ended between the two looks
        sd_state=interrupted
    fi
}

# As sd_look, but an absent call whose owner lives runs: it has removed its own folder.
sd_look_closely() {
    sd_look "$1"
    [ "$sd_state" = absent ] && sd_find_marked "SANDHOLD_OWNS=$1/" && sd_state=running
    return 0
}

sd_has_ended() {
    for sd_file in "$sd_folder"/ended.*; do
        [ -e "$sd_file" ] || return 1
        sd_name=${sd_file##*/ended.}
        sd_reason=${sd_name##*.} sd_name=${sd_name%.*}
        sd_ended=${sd_name##*.} sd_name=${sd_name%.*}
        sd_began=${sd_name##*.} sd_code=${sd_name%.*}
        sd_state=ended
        return 0
    done
}

# Tells the state of the call sd_look has looked at and, when it is over, its output.
sd_tell() {
    [ "$sd_state" = interrupted ] && sd_signal KILL # what it started has nobody else left to end it
    sd_hash=-
    read -r sd_hash sd_rest <"$sd_folder/lock"
    echo "@call $sd_call $sd_state $sd_code $sd_began $sd_ended $sd_reason ${sd_hash:--}"
    case $sd_state in ended | interrupted)
        [ -e "$sd_folder/full" ] && echo "@full"
        sd_tell_file stdout "$sd_folder/stdout" "$sd_stdout_window"
        sd_tell_file stderr "$sd_folder/stderr" "$sd_stderr_window"
        ;;
    esac
}

# Tells the size of the file $2 and its bytes, at most $3 of them: the first fifth and the rest from the end.
sd_tell_file() {
    [ -s "$2" ] || return 0
    # A small file in one process: a byte is three characters at least, so fewer than 12,000 are the whole file.
    sd_hex=$(od -An -v -tx1 -N 4096 "$2")
    if [ "$sd_hex" ] && [ ${#sd_hex} -lt 12000 ]; then
        echo "@$1 - hex"
        echo "$sd_hex"
        return
    fi
    sd_size=$(stat -c %s "$2") || sd_size=$(($(wc -c <"$2")))
    if [ "$sd_size" -le "$3" ]; then
        echo "@$1 $sd_size $sd_encoding"
        head -c "$sd_size" "$2" | sd_encode
    else
        echo "@$1 $sd_size $sd_encoding"
        head -c $(($3 / 5)) "$2" | sd_encode
        echo .tail
        # The file may still grow: what is told is bounded whatever happens.
        tail -c $(($3 - $3 / 5)) "$2" | head -c $(($3 - $3 / 5)) | sd_encode
    fi
}

if command -v base64 >/dev/null; then
    sd_encoding=base64
    sd_encode() { base64; }
else
    sd_encoding=hex
    sd_encode() { od -An -v -tx1; }
fi

# ---- Ending a command

# Ends the call sd_call: TERM, at most $2 hundredths of a second of grace, KILL. $1 is why. Returns when the owner
# has published the end, or there is none left to do so.
sd_end() {
    [ -d "$sd_folder" ] || mkdir -p "$sd_folder"
    printf '' >"$sd_folder/ending.$1.$2"
    sd_clock
    sd_until=$((sd_now + $2)) sd_with=TERM sd_sent=
    while sd_look_closely "$sd_call" && [ "$sd_state" = running ]; do
        # The command may be between fork and exec, where nothing tells it yet: try until something was hit.
        [ "$sd_sent" ] || { sd_signal $sd_with && sd_sent=1; }
        sd_sleep 5
        sd_clock
        [ "$sd_late_at" ] && [ "$sd_now" -ge "$sd_late_at" ] && sd_say_late
        if [ "$sd_now" -ge "$sd_until" ]; then
            # Anything that was started since the last KILL gets the next one.
            sd_with=KILL sd_sent= sd_until=$((sd_now + 50))
        fi
    done
}

# In the owner, after an ended command: what it left behind gets the rest of the grace of $1 hundredths, then KILL.
sd_sweep() {
    sd_clock
    sd_until=$((sd_now + $1))
    while sd_find_marked "SANDHOLD_CALL=$sd_call/"; do
        sd_clock
        if [ "$sd_now" -ge "$sd_until" ]; then
            sd_signal KILL || break
        fi
        sd_sleep 5
    done
}

# ---- Running a command: everything below here until "Requests" is the detached owner

# Wakes the request that waits on descriptor 7: the command goes on without it.
sd_say_late() {
    echo "late $sd_starter" >&7
    exec 7>&-
    sd_late_at=
}

# Ends the command when its time is up; wakes the request when its wait is over. Told by TERM that the command has
# ended, it leaves.
sd_watch() {
    sd_told= sd_nap=
    trap 'sd_told=1; [ "$sd_nap" ] && kill -9 "$sd_nap"' TERM
    trap '' PIPE
    sd_clock
    sd_late_at=$((sd_now + sd_wait))
    if [ "$sd_wait" -lt "$sd_timeout" ]; then
        sd_nap_for "$sd_wait"
        sd_say_late
        sd_nap_for $((sd_timeout - sd_wait))
    else
        sd_nap_for "$sd_timeout"
    fi
    trap '' TERM
    sd_end timed_out "$sd_grace"
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

# Runs the command if nobody has. Descriptor 7 leads to the request that started us.
sd_own() {
    sd_call=$1 sd_hash=$2 sd_wait=$3 sd_timeout=$4 sd_grace=$5
    if [ "$SANDHOLD_UPLOAD" ]; then
        sd_move_script || exit 0
    fi
    if ! sd_take_lock; then
        [ "$SANDHOLD_UPLOAD" ] && rm -f "$sd_script"
        exit 0
    fi
    sd_began=$sd_born sd_starter=$sd_parent
    printf '%s\n' "$sd_hash" >"$sd_folder/lock"
    sd_look_for_room
    if [ "$SANDHOLD_UPLOAD" ]; then
        set -- "$sd_script"
    else
        set -- -c "$SANDHOLD_SCRIPT"
    fi
    sd_watch >/dev/null &
    sd_watcher=$!
    unset SANDHOLD_LAUNCHER SANDHOLD_SCRIPT SANDHOLD_UPLOAD SANDHOLD_CWD SANDHOLD_OWNS OLDPWD
    sd_code=-
    if ! sd_is_ending; then
        # A session and group of its own: `kill 0` in the script must not hit us. In the foreground, because a
        # background command ignores SIGINT. Appending, so that nothing is overwritten by offset. By exec in a
        # subshell, because a shell writes "Killed" to the stderr that it redirected.
        (
            export SANDHOLD_CALL="$sd_call/"
            command -v setsid >/dev/null && set -- setsid sh "$@" || set -- sh "$@"
            exec "$@" >>"$sd_folder/stdout" 2>>"$sd_folder/stderr" 7>&-
        )
        sd_code=$?
    fi

    sd_is_ending && sd_sweep "$sd_left"
    sd_look_for_room
    sd_clock
    sd_publish "$sd_code.$sd_began.$sd_now.$sd_reason"
    trap '' PIPE
    echo done >&7
    kill "$sd_watcher"
    wait "$sd_watcher"
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

# Takes the lock of the call sd_call for this process, once and for all; fails when somebody has it.
sd_take_lock() {
    sd_folder=$sd_home/calls/$sd_call
    sd_process self || sd_parent=$PPID sd_session=0 sd_born=0
    [ -d "$sd_folder" ] || mkdir -p "$sd_folder"
    printf '' >"$sd_folder/owner.$$.$sd_born.$sd_session" || return 1
    set -C
    printf '' >"$sd_folder/lock"
    sd_code=$?
    set +C
    return $sd_code
}

# Whether somebody ends the command; sets sd_reason, and sd_left to the grace.
sd_is_ending() {
    sd_reason=-
    for sd_file in "$sd_folder"/ending.*; do
        [ -e "$sd_file" ] || return 1
        sd_name=${sd_file##*/ending.}
        sd_reason=${sd_name%.*} sd_left=${sd_name##*.}
        return 0
    done
}

# Publishes how the command ended, also when it removed its own folder: else a late retry would run it again.
sd_publish() {
    sd_tries=0
    until printf '' >"$sd_folder/ended.$1"; do
        mkdir -p "$sd_folder" && printf '%s\n' "$sd_hash" >"$sd_folder/lock" && continue
        [ $((sd_tries += 1)) -gt 600 ] && break
        sleep 1
    done
    for sd_bell in "$sd_home"/bells/*; do
        [ -p "$sd_bell" ] && echo 1<>"$sd_bell"
    done
}

# ---- Requests

# Starts the command of the call $1 unless it was started, and waits for its end. $6 is "again" when an earlier
# request may have started it.
sd_start() {
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
    [ "$sd_state" = running ] && sd_wait_for "$1"
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

# Waits until sd_until for one of the calls to be over. Owners ring every bell that hangs in ~/.sandhold/bells.
sd_wait_for() {
    sd_bell=$sd_home/bells/$$ sd_rings=
    if mkdir -p "$sd_home/bells" && { [ -p "$sd_bell" ] || mkfifo "$sd_bell"; }; then
        exec 8<>"$sd_bell" && command -v timeout >/dev/null && sd_rings=1
        sd_take_down_stale_bells
    fi
    while :; do
        for sd_each; do
            sd_look_closely "$sd_each"
            [ "$sd_state" = running ] || break 2
        done
        sd_clock
        sd_left=$((sd_until - sd_now))
        [ $sd_left -gt 0 ] || break
        if [ "$sd_rings" ]; then
            sd_to_seconds $sd_left
            timeout "$sd_seconds" head -n 1 <&8 >/dev/null 8>&-
            # A ring, or the end of the wait; anything else (no fractions, no process left) is no way to wait.
            case $? in 0 | 124 | 143) ;; *) sd_rings= ;; esac
        else
            sd_sleep $((sd_left < 20 ? sd_left : 20))
        fi
    done
    rm -f "$sd_bell"
}

# A request that was killed leaves its bell behind.
sd_take_down_stale_bells() {
    for sd_file in "$sd_home"/bells/*; do
        [ -e "/proc/${sd_file##*/}" ] || rm -f "$sd_file"
    done
}

# Waits until one of the calls is over; tells of those that are, at most $1 of them.
sd_follow() {
    sd_most=$1
    sd_clock
    sd_until=$((sd_now + $2))
    shift 2
    sd_wait_for "$@"
    for sd_each; do
        sd_look_closely "$sd_each"
        [ "$sd_state" = running ] && continue
        sd_tell
        [ $((sd_most -= 1)) -gt 0 ] || break
    done
}

# Ends the call $1 with a grace of $2 hundredths. One that was never started is kept from starting later.
sd_stop() {
    sd_look_closely "$1"
    if [ "$sd_state" = absent ]; then
        sd_take_lock && printf '' >"$sd_folder/ended.-.-.-.cancelled"
        sd_look "$1"
    fi
    sd_late_at=
    [ "$sd_state" = running ] && sd_end cancelled "$2"
    sd_look "$1"
    sd_tell
}

sd_request=$1
case $sd_request in
own)
    shift
    sd_own "$@"
    ;;
*)
    sd_nonce=$2 sd_stdout_window=$3 sd_stderr_window=$4
    shift 4
    sd_clock
    echo "<$sd_nonce $sd_now"
    case $sd_request in
    start)
        sd_start "$@"
        # Our owner has moved the upload before it let us go on, if it could.
        [ "$SANDHOLD_UPLOAD" ] && rm -f "$SANDHOLD_UPLOAD"
        ;;
    follow) sd_follow "$@" ;;
    stop) sd_stop "$@" ;;
    esac
    echo "$sd_nonce>"
    ;;
esac
exit 0
