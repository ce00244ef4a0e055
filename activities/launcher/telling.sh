# Telling what has become of a call.

# Tells the state of the call sd_look has looked at.
sd_tell_state() {
    [ "$sd_state" = interrupted ] && sd_read_on && sd_signal KILL # what it started has nobody else left to end it
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
