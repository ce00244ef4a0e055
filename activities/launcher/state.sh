# The command launcher: starts a command at most once per call, waits for it, tells what became of it, feeds it,
# ends it. This part is what every request begins with: the sandbox's clock, its processes, the state of a call.
#
# It is sent with every request and run by a POSIX sh inside the sandbox; `request.py` says which parts make up
# the program of a request, how it is called, and reads its answer. Each call has a folder below ~/.sandhold/calls:
#
#   lock                      made exclusively by the one process that runs the command; holds the script's hash and
#                             when it began
#   owner.PID.BORN.SESSION    who tried to run it; made before the lock, so a lock always has an owner on record
#   session.PID.BORN          the session that the command runs in, named by the process that led it first
#   stdout stderr             what the command wrote, byte for byte
#   script.PID                the script, when it is too large for a variable
#   stdin bell input/         of a command whose standard input is kept open: see input.sh
#   signalled.CALL            the call that sent a signal; made before it is sent
#   ending.REASON.GRACE       somebody ends the command: timed_out, output_limit:BYTES or cancelled
#   ended.CODE.BEGAN.ENDED.REASON  how it ended; REASON ends in `:alive` when something of it could not be killed
#   room                      empty; written to when there is a need to know whether anything can be
#   reopens                   empty; the script opens its own output anew, which empties it
#   full                      it could not be, so output may be missing
#
# Once a folder is cleaned away an empty file calls/.done/CALL keeps its command from being run again.
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
    sd_line=
    # The name of its program stands in parentheses, and may hold anything, newlines too.
    while read -r sd_part; do sd_line=$sd_line$sd_part; done <"/proc/$1/stat" && [ "$sd_line" ] || return 1
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

# Sets sd_members to what lives of the session that the command was started in, also without a mark and when its leader
# is dead. Fails when nothing does. Only a process that has left both its session and its environment is not found.
sd_find_members() {
    sd_members=
    for sd_file in "$sd_folder"/session.*; do
        sd_name=${sd_file##*/session.}
        sd_id=${sd_name%%.*}
        case $sd_id in '' | 0* | 1 | *[!0-9]*) continue ;; esac
        if sd_process "$sd_id"; then
            [ "$sd_born" = "${sd_name#*.}" ] || continue # the number is used again
        else
            # No pid is given out again while a session bears it. Without the owner, who knows what has been meanwhile.
            sd_owner_lives || continue
        fi
        # So many fields that no name of a program, of at most 15 characters, can look like them.
        for sd_file in $(grep -lE "\) [^XZ] [0-9]+ [0-9]+ $sd_id [0-9]+ -?[0-9]+ [0-9]+ [0-9]+ " /proc/[0-9]*/stat); do
            sd_file=${sd_file#/proc/}
            sd_members="$sd_members ${sd_file%/stat}"
        done
    done
    [ "$sd_members" ]
}

# Sets sd_leader to the process that leads the command's group: the child of its owner that has left the owner's
# session. Before that its group is the owner's.
sd_find_command() {
    sd_children= sd_leader=
    # Without a newline at its end, so that read fails.
    sd_owner_lives && read -r sd_children <"/proc/$sd_owner/task/$sd_owner/children"
    for sd_pid in $sd_children; do
        sd_process "$sd_pid" && [ "$sd_session" = "$sd_pid" ] && [ "$sd_status" != Z ] && sd_leader=$sd_pid
    done
    [ "$sd_leader" ]
}

# Sends the signal $1 to everything that belongs to the call sd_call: the command's process group, found as the
# owner's child, and the groups of whatever carries the mark or is in its session. Once to each: many programs take a second TERM for
# impatience. Fails when there was nothing to signal.
sd_signal() {
    sd_groups=" "
    sd_hit=
    sd_find_command && sd_signal_group "$1" "$sd_leader"
    sd_find_marked "SANDHOLD_CALL=$sd_call/"
    sd_find_members
    for sd_pid in $sd_marked $sd_members; do
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

# Sets sd_state to ended (with sd_code sd_began sd_ended sd_reason), running, interrupted (it was started, has no end,
# and nothing runs it), cleaned (it is over, and its folder was removed) or absent.
sd_look() {
    sd_call=$1
    sd_folder=$sd_home/calls/$1
    sd_code=- sd_began=- sd_ended=- sd_reason=-
    sd_has_ended && return
    if [ ! -e "$sd_folder/lock" ]; then
        sd_state=absent
    elif sd_owner_lives; then
        sd_state=running
        return
    elif sd_has_ended; then # it may have ended between the two looks
        return
    else
        sd_state=interrupted
    fi
    # Asked last: it is made before the folder goes.
    [ -e "$sd_home/calls/.done/$1" ] && sd_state=cleaned
    return 0
}

# As sd_look, but an absent call whose owner lives runs: it has removed its own folder.
sd_look_closely() {
    sd_look "$1"
    [ "$sd_state" = absent ] && sd_find_marked "SANDHOLD_OWNS=$1/" && sd_state=running
    return 0
}

# The command can make files here too: a name that is not one of ours says that it has ended, and nothing else.
sd_has_ended() {
    sd_state=
    for sd_file in "$sd_folder"/ended.*; do
        [ -e "$sd_file" ] || continue
        sd_state=ended
        sd_name=${sd_file##*/ended.}
        sd_reason=${sd_name##*.} sd_name=${sd_name%.*}
        sd_ended=${sd_name##*.} sd_name=${sd_name%.*}
        sd_began=${sd_name##*.} sd_code=${sd_name%.*}
        sd_is_number "$sd_code" && sd_is_number "$sd_began" && sd_is_number "$sd_ended" &&
            sd_is_reason "${sd_reason%:alive}" && return
        sd_code=- sd_began=- sd_ended=- sd_reason=-
    done
    [ "$sd_state" ]
}

# Whether $1 is a number, or - for none.
sd_is_number() {
    case $1 in
    -) ;;
    '' | *[!0-9]*) return 1 ;;
    esac
}

# Whether $1 is why we end a command, or - when we do not.
sd_is_reason() {
    case $1 in
    - | timed_out | cancelled) ;;
    output_limit:?*) sd_is_number "${1#output_limit:}" ;;
    *) return 1 ;;
    esac
}

# Tells the state of the call sd_look has looked at.
sd_tell_state() {
    [ "$sd_state" = interrupted ] && sd_signal KILL # what it started has nobody else left to end it
    sd_hash= sd_from=
    read -r sd_hash sd_from sd_rest <"$sd_folder/lock"
    # By the clock that tells the end: a time of birth may be by another, where a container has an uptime of its own.
    [ "$sd_began" = - ] && sd_began=${sd_from:--}
    echo "@call $sd_call $sd_state $sd_code $sd_began $sd_ended $sd_reason ${sd_hash:--}"
}

# As sd_tell_state and, when the call is over, the beginning and the end of its output.
sd_tell() {
    sd_tell_state
    case $sd_state in ended | interrupted)
        [ -e "$sd_folder/full" ] && echo "@full"
        [ -e "$sd_folder/reopens" ] && echo "@reopens"
        sd_tell_file stdout "$sd_folder/stdout" "$sd_stdout_window"
        sd_tell_file stderr "$sd_folder/stderr" "$sd_stderr_window"
        ;;
    esac
}

# Tells the size of the file $2 and its bytes, at most $3 of them: the first fifth and the rest from the end.
sd_tell_file() {
    [ -s "$2" ] || return 0
    # A small file in one process: a byte is three characters at least, so fewer than 12,000 are the whole file.
    sd_hex=$(od -An -v -tx1 -N 4096 "$2") || sd_hex=
    if [ "$sd_hex" ] && [ ${#sd_hex} -lt 12000 ]; then
        echo "@$1 - hex"
        echo "$sd_hex"
        return
    fi
    # One that cannot be found is not 0: the request ends without an end to its answer, and is made again.
    sd_size=$(stat -c %s "$2") || sd_size=$(wc -c <"$2") || exit 1
    sd_size=$((sd_size))
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

# Writes into the lock of the call sd_call, which this process took or has to make again.
sd_fill_lock() {
    printf '%s %s\n' "$sd_hash" "$sd_began" >"$sd_folder/lock"
}

# Keeps the call sd_call from being run again, without its folder.
sd_remember() {
    [ -d "$sd_home/calls/.done" ] || mkdir -p "$sd_home/calls/.done"
    printf '' >"$sd_home/calls/.done/$sd_call"
}
