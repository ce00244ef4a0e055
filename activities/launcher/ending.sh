# Ending a command from outside: because its time is up, it wrote too much, or somebody asked for it.

# How long, in hundredths of a second, KILL is repeated before a command counts as one that cannot be killed: what it
# runs belongs to root, or hangs in the kernel; or its owner was stopped, or can make no file.
sd_patience=600

# Ends the call sd_call: TERM, at most $2 hundredths of a second of grace, KILL. $1 is why. Returns when the end is
# published, by the owner or in its place, or there is nobody left to do so.
sd_end() {
    sd_clock
    sd_until=$((sd_now + $2)) sd_with=TERM sd_sent=
    sd_enough_at=$((sd_until + sd_patience))
    while sd_look_closely "$sd_call" && [ "$sd_state" = running ]; do
        # Where no file can be made it ends all the same, and whoever asked knows why.
        [ -e "$sd_folder/ending.$1.$2" ] || { mkdir -p "$sd_folder" && printf '' >"$sd_folder/ending.$1.$2"; }
        # The command may be between fork and exec, where nothing tells it yet: try until something was hit.
        [ "$sd_sent" ] || { sd_signal $sd_with && sd_sent=1; }
        sd_sleep 5
        sd_clock
        [ "$sd_late_at" ] && [ "$sd_now" -ge "$sd_late_at" ] && sd_say_late
        if [ "$sd_now" -ge "$sd_enough_at" ]; then
            sd_give_up "$1"
            return
        fi
        if [ "$sd_now" -ge "$sd_until" ]; then
            # Anything that was started since the last KILL gets the next one.
            sd_with=KILL sd_sent= sd_until=$((sd_now + 50))
        fi
    done
}

# Publishes the end of the call sd_call in its owner's place, for the reason $1, and ends the owner.
sd_give_up() {
    sd_is_alive && set -- "$1:alive"
    read -r sd_hash sd_began sd_rest <"$sd_folder/lock"
    case $sd_began in '' | *[!0-9]*) sd_began=- ;; esac
    # Before the owner ends: without either the command would be told as interrupted.
    sd_publish "-.$sd_began.$sd_now.$1" 2
    sd_process self
    sd_self=${sd_line%% *}
    sd_find_marked "SANDHOLD_OWNS=$sd_call/"
    sd_owner_lives && kill -9 "$sd_owner"
    for sd_pid in $sd_marked; do
        [ "$sd_pid" = "$sd_self" ] || kill -9 "$sd_pid"
    done
}

# Whether something lives, so far as can be seen, of the command of the call sd_call. The mark of another user's process
# cannot be read, but its session.
sd_is_alive() {
    sd_find_marked "SANDHOLD_CALL=$sd_call/" || sd_find_members || sd_find_command
}

# The request `stop`: ends the call $1 with a grace of $2 hundredths, because of $3. One that was never started is kept
# from starting later.
sd_answer_stop() {
    sd_look_closely "$1"
    if [ "$sd_state" = absent ]; then
        sd_process self || sd_born=0 sd_session=0
        sd_take_lock "$sd_born" "$sd_session" && printf '' >"$sd_folder/ended.-.-.-.$3"
        sd_look "$1"
    fi
    sd_late_at=
    [ "$sd_state" = running ] && sd_end "$3" "$2"
    sd_look "$1"
    sd_tell
}
