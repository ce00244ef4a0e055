# The command launcher: starts a command at most once per call, waits for it, tells what became of it, feeds it,
# ends it. This part is what every program begins with: the sandbox's clock, its processes, the state of a call.
#
# It is sent with every request and run by a POSIX sh inside the sandbox; `request.py` says which parts make up
# the program of a request, and how it is called. Each call has a folder below ~/.sandhold/calls:
#
#   lock                      made exclusively by the one process that runs the command; holds the script's hash and
#                             when it began
#   owner.PID.BORN.SESSION    who tried to run it; made before the lock, so a lock always has an owner on record.
#                             BORN is x in the first moment, and then said by a second one
#   session.PID.BORN          the session that the command runs in, named by the process that led it first; made soon
#                             after its start, and before anything of it is signalled
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
# Every fork counts (about 1 ms), so this uses builtins wherever it can; so does reading all of a process's stat (as
# much, byte by byte), and reading program text (4 ms for 100 KB). Variables begin with sd_ because the user's
# environment passes through this shell: assigning to one of its names would change it for the command.

exec 2>/dev/null

sd_home=${HOME:-/tmp}/.sandhold

# Reads the rest of this program, where it has one that a short command has no need of.
sd_unread=
sd_read_on() {
    [ "$sd_unread" ] || return 0
    eval "$sd_unread"
    sd_unread=
}

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
            [ "$sd_status" = Z ] && continue
            [ "$sd_born" = "${sd_name%%.*}" ] && return 0
            # In its first moment its mark tells. The full record comes first in the list, and needs no process.
            [ "${sd_name%%.*}" = x ] && grep -qF "SANDHOLD_OWNS=${sd_folder##*/}/" "/proc/$sd_owner/environ" && return 0
        elif [ "${sd_name%%.*}" = 0 ]; then
            kill -0 "$sd_owner" && return 0 # no /proc here
        fi
    done
    return 1
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
    [ "$sd_state" = absent ] && sd_read_on && sd_find_marked "SANDHOLD_OWNS=$1/" && sd_state=running
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
