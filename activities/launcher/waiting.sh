# Waiting for commands, and telling what they have written beyond what is known already.

# Waits until sd_until for one of the calls to be over; where sd_poll is set, also for output that sd_is_news takes for
# worth telling. The arguments are triples: a call, and how much of its stdout and stderr is known already.
# Owners ring every bell that hangs in ~/.sandhold/bells when their command ends; growth rings none.
sd_wait_for() {
    sd_bell=$sd_home/bells/$$ sd_rings=
    if mkdir -p "$sd_home/bells" && { [ -p "$sd_bell" ] || mkfifo "$sd_bell"; }; then
        exec 8<>"$sd_bell" && command -v timeout >/dev/null && sd_rings=1
        sd_take_down_stale_bells
    fi
    until sd_one_is_over "$@"; do
        sd_clock
        sd_left=$((sd_until - sd_now))
        if [ "$sd_poll" ]; then
            sd_measure "$@"
            sd_is_news && break
            [ "$sd_poll" -lt $sd_left ] && sd_left=$sd_poll
        fi
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

sd_one_is_over() {
    while [ $# -gt 0 ]; do
        sd_look_closely "$1"
        [ "$sd_state" = running ] || return 0
        shift 3
    done
    return 1
}

# A request that was killed leaves its bell behind.
sd_take_down_stale_bells() {
    for sd_file in "$sd_home"/bells/*; do
        [ -e "/proc/${sd_file##*/}" ] || rm -f "$sd_file"
    done
}

# ---- Measuring: in ~/.sandhold/calls, where a call's name is a word without blanks

# Sets sd_sizes to lines of file and size, sd_fresh to the bytes that are not known yet, and sd_streams to the number
# of streams that have some. One process for all of them.
sd_measure() {
    sd_files=
    sd_list "$@"
    sd_sizes=
    if [ "$sd_files" ]; then
        sd_sizes=$(stat -c '%n %s' $sd_files)
        [ "$sd_sizes" ] || sd_sizes=$(for sd_file in $sd_files; do echo "$sd_file $(($(wc -c <"$sd_file")))"; done)
    fi
    sd_fresh=0 sd_streams=0
    while [ $# -gt 0 ]; do
        sd_count "$1/stdout" "$2"
        sd_count "$1/stderr" "$3"
        shift 3
    done
}

sd_list() {
    while [ $# -gt 0 ]; do
        for sd_file in "./$1/stdout" "./$1/stderr"; do
            [ -e "$sd_file" ] && sd_files="$sd_files $sd_file"
        done
        shift 3
    done
}

sd_count() {
    sd_size_of "$1"
    if [ "$sd_size" -gt "$2" ]; then
        sd_fresh=$((sd_fresh + sd_size - $2))
        sd_streams=$((sd_streams + 1))
    fi
}

# Sets sd_size to what was measured of the file $1.
sd_size_of() {
    sd_size=${sd_sizes#*"./$1 "}
    [ "$sd_size" = "$sd_sizes" ] && sd_size=0
    sd_size=${sd_size%%[!0-9]*}
}

# Tells the size of the stream $1 of sd_call and its bytes from the offset $2 on: at most its share of sd_budget, and
# some before and after that, because whole blocks cost only two processes.
sd_tell_slice() {
    sd_size_of "$sd_call/$1"
    sd_part=$((sd_size - $2))
    if [ $sd_part -le 0 ]; then
        echo "@slice $1 $sd_size $2 -"
        return
    fi
    sd_share=$((sd_budget / (sd_streams > 0 ? sd_streams : 1)))
    sd_streams=$((sd_streams - 1))
    [ $sd_part -gt $sd_share ] && sd_part=$sd_share
    sd_budget=$((sd_budget - sd_part))
    sd_block=$(($2 / 16384))
    echo "@slice $1 $sd_size $((sd_block * 16384)) $sd_encoding"
    dd if="./$sd_call/$1" bs=16384 skip=$sd_block count=$((($2 % 16384 + sd_part + 16383) / 16384)) | sd_encode
}

# ---- The requests

# The request `follow`: waits $2 hundredths of a second for a call to be over or to have written more; tells of those,
# with at most $1 bytes of news. Triples as for sd_wait_for follow. Of many calls that are over some are told at once,
# the others by the next request.
sd_answer_follow() {
    cd "$sd_home/calls"
    sd_budget=$1 sd_poll=50
    sd_clock
    sd_until=$((sd_now + $2)) sd_news_at=$((sd_now + 50))
    shift 2
    # Little by little is told twice a second at most.
    sd_is_news() { [ $sd_fresh -gt 0 ] && { [ $sd_now -ge $sd_news_at ] || [ $sd_fresh -ge "$sd_budget" ]; }; }
    sd_wait_for "$@"
    sd_measure "$@"
    sd_tell_news "$@"
}

sd_tell_news() {
    sd_room=4
    while [ $# -gt 0 ]; do
        sd_look_closely "$1"
        if [ "$sd_state" = running ]; then
            sd_fresh=0
            sd_streams_before=$sd_streams
            sd_count "$1/stdout" "$2"
            sd_count "$1/stderr" "$3"
            sd_streams=$sd_streams_before
            if [ $sd_fresh -gt 0 ]; then
                sd_tell_state
                sd_tell_slice stdout "$2"
                sd_tell_slice stderr "$3"
            fi
        elif [ $sd_room -gt 0 ]; then
            sd_room=$((sd_room - 1))
            sd_tell
            sd_tell_slice stdout "$2"
            sd_tell_slice stderr "$3"
        fi
        shift 3
    done
}

# The request `read`: tells what the call $1 has written from the offsets $2 of stdout and $3 of stderr on, at most $6
# bytes; waits $7 hundredths of a second until there is more than $4 and $5, or the call is over.
sd_answer_read() {
    cd "$sd_home/calls"
    sd_budget=$6 sd_poll=25
    sd_clock
    sd_until=$((sd_now + $7))
    sd_is_news() { [ $sd_fresh -gt 0 ]; }
    sd_wait_for "$1" "$4" "$5"
    sd_measure "$1" "$2" "$3"
    sd_look_closely "$1"
    sd_tell_state
    sd_tell_slice stdout "$2"
    sd_tell_slice stderr "$3"
}
