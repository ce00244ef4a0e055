# Streams of any length into and out of a sandbox, through a spool: a folder with a few parts of it at a time.
#
# This part is what the others begin with. They are POSIX sh for dash, bash and busybox, and are sent with each request.
# Variables begin with ss_ because the sandbox's environment passes through. Each attempt has a spool of its own, which
# is ~/.sandhold/streams/ID, or the same below /tmp or /dev/shm where the home has no room:
#
#   writer          "PID BORN" of its owner, who writes the parts (out) or reads them (in); "- -" until it has come
#   part.N          the parts, from 1 on; each appears by rename, and is removed once the other side has it
#   last.N          in: there are N parts
#   whole           in: the program has been given all of them
#   code.CODE       what the program ended with
#   said            the beginning of what it wrote to stderr (and, in, to stdout)
#   end.N.CODE      it is over, and all that it wrote is in N parts; CODE is `full` when the disk had no room for them
#
# What must never be half written is said by the name of an empty file, which works on a full disk as well. A request
# answers in lines "@NONCE WORD ... ." A spool that has gone, or has no `writer`, was given up.

LC_ALL=C
export LC_ALL
umask 077

ss_answer() { printf '\n@%s %s .\n' "$SANDHOLD_NONCE" "$1"; }

# Sets ss_born to when the process $1 was born; fails when there is none, or nothing tells.
ss_birth_of() {
    ss_line=
    { read -r ss_line <"/proc/$1/stat"; } 2>/dev/null || return 1
    set -- ${ss_line##*") "}
    [ "$1" != Z ] || return 1
    shift 19
    ss_born=$1
}

# Whether the owner of the spool $1 lives, or has not come yet; pids are used again, so its birth is compared.
ss_lives() {
    ss_pid=- ss_was_born=-
    { read -r ss_pid ss_was_born <"$1/writer"; } 2>/dev/null
    case $ss_was_born in
    -) ;;
    0) kill -0 "$ss_pid" 2>/dev/null ;;
    *) ss_birth_of "$ss_pid" && [ "$ss_born" = "$ss_was_born" ] ;;
    esac
}

# Puts this process on record as the spool's owner, who removes it in the end. Fails when it was given up already.
ss_own() {
    [ -e "$SANDHOLD_SPOOL/writer" ] || return 1
    ss_birth_of $$ || ss_born=0
    trap 'rm -rf "$SANDHOLD_SPOOL"' EXIT
    trap 'exit 143' HUP INT TERM
    printf '%s %s\n' $$ "$ss_born" >"$SANDHOLD_SPOOL/writer.new" &&
        mv "$SANDHOLD_SPOOL/writer.new" "$SANDHOLD_SPOOL/writer"
}

# Keeps the beginning of what comes as `said`, and reads the rest, so that nobody waits for it.
ss_keep() {
    head -c "$SANDHOLD_SAID_BYTES" >"$SANDHOLD_SPOOL/said"
    cat >/dev/null
}

# Who waits for something to come looks often; who waits for room has sent enough to rest for longer.
ss_nap=0.05 ss_rest=0.1
sleep 0.01 2>/dev/null || ss_nap=1 ss_rest=1

# Sets ss_now to the seconds on the sandbox's clock, which only ever goes forward.
ss_clock() {
    ss_now=
    { read -r ss_now ss_line </proc/uptime; } 2>/dev/null
    ss_now=${ss_now%.*}
    [ "$ss_now" ] || ss_now=$(date +%s)
}

# Waits until $1 is not there any more; fails when that takes longer than the patience, or when the spool has gone.
ss_wait_without() {
    ss_clock
    ss_until=$((ss_now + SANDHOLD_PATIENCE))
    while [ -e "$1" ]; do
        [ "$ss_now" -lt $ss_until ] || return 1
        sleep "$ss_rest"
        ss_clock
    done
    [ -e "$SANDHOLD_SPOOL/writer" ]
}

# Waits for at most SANDHOLD_WAIT seconds until ss_came succeeds, and answers what it says in ss_news, or "end CODE
# BYTES-SAID" once the spool's owner is over and what is waited for is beyond part $1; "dead" when it has died, "gone"
# when it was given up, "waiting" when nothing happens.
ss_answer_when_it_came() {
    ss_clock
    ss_until=$((ss_now + SANDHOLD_WAIT))
    while :; do
        # In this order: what a dead owner has left is looked at after its death, and the last part comes before the end.
        ss_lives "$SANDHOLD_SPOOL" && ss_state= || ss_state=dead
        [ -e "$SANDHOLD_SPOOL/writer" ] || ss_state=gone
        for ss_file in "$SANDHOLD_SPOOL"/end.*; do
            ss_end=${ss_file##*/end.}
            [ -e "$ss_file" ] && [ "$1" -gt "${ss_end%%.*}" ] &&
                ss_state="end ${ss_end#*.} $(($(wc -c <"$SANDHOLD_SPOOL/said")))"
        done
        [ "$ss_state" ] || [ "$ss_now" -lt $ss_until ] || ss_state=waiting
        ss_came && ss_state=$ss_news
        [ -z "$ss_state" ] || break
        sleep "$ss_nap"
        ss_clock
    done
    ss_answer "$ss_state"
}
