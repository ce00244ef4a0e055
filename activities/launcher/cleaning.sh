# Removing the folders of old calls.

# The request `clean`: removes the folders of commands that are over beyond the $1 latest, and of those that are over
# for more than $2 minutes; and uploads, in files whose names begin with $4, that no request has fetched for more than
# $3 minutes. The further arguments are calls whose folders stay; so does the folder of a call that runs, or that has
# left processes behind.
#
# Each call leaves a tombstone, an empty file, for as long as the sandbox lives: a retry may come at any time. They are
# looked up by name and never listed: with 100,000 of them this takes the 17 ms that it takes with none (dash, ext4), and
# `true` its 11 ms. On the disk they are an inode each, and 7 MB of names.
sd_answer_clean() {
    sd_most=$1 sd_minutes=$2
    find "$4"* -prune -type f -mmin "+$3" -exec rm -f {} +
    sd_unfetched=$3
    shift 4
    sd_keep=" $* "
    cd "$sd_home/calls" && mkdir -p .done && rm -rf .gone && mkdir .gone || return
    sd_in_use=$(cat /proc/[0-9]*/environ | tr '\000' '\n' | grep '^SANDHOLD_CALL=')
    sd_gone=
    sd_count=0
    for sd_file in $(ls -t -- */ended.*); do
        [ $((sd_count += 1)) -gt "$sd_most" ] && sd_bury "${sd_file%%/*}"
    done
    # What has no end was interrupted, or is a file call's.
    for sd_file in $(
        find . -maxdepth 2 -name '.?*' -prune -o '(' -name 'ended.*' -o -name lock ')' -mmin "+$sd_minutes" -print
    ); do
        sd_file=${sd_file#./}
        sd_bury "${sd_file%%/*}"
    done
    # At once, so that nobody meets a folder of which a part is gone.
    [ "$sd_gone" ] && mv $sd_gone .gone/
    rm -rf .gone
    # A file call that never came after its upload has nothing else in its folder.
    find . -maxdepth 2 -name '.?*' -prune -o -name 'upload-*' -type f -mmin "+$sd_unfetched" -exec rm -f {} +
    find . -maxdepth 1 -name '[!.]*' -type d -mmin "+$sd_unfetched" -exec rmdir {} +
}

# Marks the call $1 for removal if it is over and nobody needs it.
sd_bury() {
    case "$sd_keep$sd_gone " in *" $1 "* | *" ./$1 "*) return ;; esac
    case $sd_in_use in *"SANDHOLD_CALL=$1/"*) return ;; esac
    sd_look "$1"
    case $sd_state in ended | interrupted | cleaned) ;; *) return ;; esac
    sd_remember && sd_gone="$sd_gone ./$1"
}
