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
    sd_owned=
    while [ $# -gt 0 ]; do
        sd_look_among "$1"
        [ "$sd_state" = running ] || return 0
        shift 3
    done
    return 1
}

# As sd_look_closely, for one of many: who owns what is asked once, until sd_owned is emptied.
sd_look_among() {
    sd_look "$1"
    [ "$sd_state" = absent ] || return 0
    [ "$sd_owned" ] || sd_owned=" $(cat /proc/[0-9]*/environ | tr '\000' '\n' | grep '^SANDHOLD_OWNS=') "
    case $sd_owned in *SANDHOLD_OWNS="$1/"*) sd_state=running ;; esac
}

# A request that was killed leaves its bell behind.
sd_take_down_stale_bells() {
    for sd_file in "$sd_home"/bells/*; do
        [ -e "/proc/${sd_file##*/}" ] || rm -f "$sd_file"
    done
}

# ---- Measuring: in ~/.sandhold/calls, where a call's name is a word without blanks

# Sets sd_sizes to a word STDOUT:STDERR for each call, in the arguments' order, sd_fresh to the bytes that are not known
# yet, and sd_streams to the number of streams that have some. As many processes for 200 calls as for one, and one look
# at each size: whatever is looked up in a list costs the square of their number. A size that could not be found is not
# taken for that of an empty file: the request ends without an end to its answer, and is made again.
sd_measure() {
    sd_sizes= sd_fresh=0 sd_streams=0 sd_shrunk= sd_out=0 sd_err=0 sd_word=
    for sd_word in $(sd_weigh "$@"); do
        case $sd_word in
        ./*/stdout | ./*/stderr)
            # The calls before it have no file.
            while [ $# -gt 3 ] && [ "${sd_word%/*}" != "./$1" ]; do
                sd_count "$2" "$3"
                shift 3
            done
            case $sd_word in */stdout) sd_out=$sd_size ;; *) sd_err=$sd_size ;; esac
            ;;
        *) sd_size=$sd_word ;;
        esac
    done
    [ "$sd_word" = all ] || exit 1
    while [ $# -gt 0 ]; do
        sd_count "$2" "$3"
        shift 3
    done
}

# Prints a line with size and name for each stream's file, in the arguments' order, as far as they exist, and then the
# word `all` unless something failed: where no process can be started, for one. What a command has put in the place of
# a file is none: to read from a pipe would wait for somebody who writes to it.
sd_weigh() {
    sd_files=$(while [ $# -gt 0 ]; do
        for sd_file in "./$1/stdout" "./$1/stderr"; do
            [ -f "$sd_file" ] && [ -r "$sd_file" ] && echo "$sd_file"
        done
        shift 3
    done) || return
    set -- $sd_files
    if [ $# -gt 0 ]; then
        sd_found=$(stat -c '%s %n' "$@") || sd_found=$(wc -c "$@") || return
        echo "$sd_found"
    fi
    echo all
}

# Counts the call of which sd_out and sd_err bytes were found, $1 and $2 are known.
sd_count() {
    sd_sizes="$sd_sizes $sd_out:$sd_err"
    [ "$sd_out" -gt "$1" ] && sd_fresh=$((sd_fresh + sd_out - $1)) sd_streams=$((sd_streams + 1))
    [ "$sd_err" -gt "$2" ] && sd_fresh=$((sd_fresh + sd_err - $2)) sd_streams=$((sd_streams + 1))
    sd_has_shrunk "$sd_out" "$1" || sd_has_shrunk "$sd_err" "$2" && sd_shrunk=1
    sd_out=0 sd_err=0
}

# Whether a stream is $1 bytes long now although the caller knows $2: the command has emptied it. A number that no file
# reaches stands for a stream of which nothing more is to be told.
sd_has_shrunk() {
    [ "$1" -lt "$2" ] && [ ${#2} -lt 16 ]
}

# Tells both streams of sd_call, of which sd_size_pair was measured, from the offsets $1 and $2 on.
sd_tell_slices() {
    sd_size=${sd_size_pair%:*}
    sd_tell_slice stdout "$1"
    sd_size=${sd_size_pair#*:}
    sd_tell_slice stderr "$2"
}

# Tells the size sd_size of the stream $1 of sd_call and its bytes from the offset $2 on: at most its share of sd_budget,
# and some before and after that, because whole blocks cost only two processes.
sd_tell_slice() {
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
    sd_is_news() { [ "$sd_shrunk" ] || [ $sd_fresh -gt 0 ] && { [ $sd_now -ge $sd_news_at ] || [ $sd_fresh -ge "$sd_budget" ]; }; }
    sd_wait_for "$@"
    sd_measure "$@"
    sd_tell_news "$@"
}

sd_tell_news() {
    sd_room=4 sd_owned=
    for sd_size_pair in $sd_sizes; do
        sd_look_among "$1"
        if [ "$sd_state" = running ]; then
            sd_out=${sd_size_pair%:*} sd_err=${sd_size_pair#*:}
            if [ "$sd_out" -gt "$2" ] || [ "$sd_err" -gt "$3" ] ||
                sd_has_shrunk "$sd_out" "$2" || sd_has_shrunk "$sd_err" "$3"; then
                sd_tell_state
                sd_tell_slices "$2" "$3"
            fi
        elif [ $sd_room -gt 0 ]; then
            sd_room=$((sd_room - 1))
            sd_tell
            sd_tell_slices "$2" "$3"
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
    sd_size_pair=${sd_sizes# }
    sd_tell_slices "$2" "$3"
}
