# Starting a command by a detached owner.

sd_unread=$SANDHOLD_LAUNCHER_MORE

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
    [ "$sd_state" = running ] && sd_read_on && sd_wait_for "$1" 0 0
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
        SANDHOLD_OWNS=$1/ $sd_setsid sh -c "$SANDHOLD_OWNER" sandhold "$@" 7>&1 >/dev/null </dev/null
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
