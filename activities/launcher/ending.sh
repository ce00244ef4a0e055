# Ending a command from outside: because its time is up, it wrote too much, or somebody asked for it.

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

# The request `stop`: ends the call $1 with a grace of $2 hundredths. One that was never started is kept from starting
# later.
sd_answer_stop() {
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
