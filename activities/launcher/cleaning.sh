# Removing the folders of old calls.

# The request `clean`: removes the folders of commands that are over beyond the $1 latest, and of those that are over
# for more than $2 minutes. Each leaves a tombstone, which stays for $3 minutes at least. The further arguments are
# calls whose folders stay; so does the folder of a call that runs, or that has left processes behind.
sd_answer_clean() {
    sd_most=$1 sd_minutes=$2 sd_kept_minutes=$3
    shift 3
    sd_keep=" $* "
    cd "$sd_home/calls" && mkdir -p .done && rm -rf .gone && mkdir .gone || return
    sd_in_use=$(cat /proc/[0-9]*/environ | tr '\000' '\n' | grep '^SANDHOLD_CALL=')
    sd_gone=
    sd_count=0
    for sd_file in $(ls -t -- */ended.*); do
        [ $((sd_count += 1)) -gt "$sd_most" ] && sd_bury "${sd_file%%/*}"
    done
    # What has no end was interrupted, or is a file call's.
    for sd_file in $(find . -mindepth 2 -maxdepth 2 '(' -name 'ended.*' -o -name lock ')' -mmin "+$sd_minutes"); do
        sd_file=${sd_file#./}
        sd_bury "${sd_file%%/*}"
    done
    # At once, so that nobody meets a folder of which a part is gone.
    [ "$sd_gone" ] && mv $sd_gone .gone/
    rm -rf .gone
    find .done -type f -mmin "+$sd_kept_minutes" -exec rm -f -- {} +
}

# Marks the call $1 for removal if it is over and nobody needs it.
sd_bury() {
    case "$sd_keep$sd_gone " in *" $1 "* | *" ./$1 "*) return ;; esac
    case $sd_in_use in *"SANDHOLD_CALL=$1/"*) return ;; esac
    sd_look "$1"
    case $sd_state in ended | interrupted | cleaned) ;; *) return ;; esac
    printf '' >".done/$1" && sd_gone="$sd_gone ./$1"
}
