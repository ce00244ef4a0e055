# What is put on record about a call: that it was started, and how it ended.

# Takes the lock of the call sd_call for this process, once and for all; fails when somebody has it. The process was
# born at $1, which may be x, in the session $2; 0 and 0 where there is no telling.
sd_take_lock() {
    sd_folder=$sd_home/calls/$sd_call
    [ -d "$sd_folder" ] || mkdir -p "$sd_folder"
    printf '' >"$sd_folder/owner.$$.$1.$2" || return 1
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

# Publishes how the command ended, also when it removed its own folder: else a late retry would run it again. Tries for
# $2 seconds, as a disk that is full may have room again.
sd_publish() {
    sd_tries=0
    until printf '' >"$sd_folder/ended.$1"; do
        if [ $((sd_tries += 1)) -gt "$2" ]; then
            [ -e "$sd_folder/lock" ] || sd_remember
            break
        fi
        [ -d "$sd_folder" ] || { mkdir -p "$sd_folder" && sd_fill_lock && continue; }
        sleep 1
    done
    for sd_bell in "$sd_home"/bells/*; do
        [ -p "$sd_bell" ] && echo 1<>"$sd_bell"
    done
}
